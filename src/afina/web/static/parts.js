// Pieces of a page that the server draws: asked for again, and put in place only when they differ.
// Knows nothing of what is in them.

import { $, CallError, call, confirmDialog, t, toast, tokenHeader } from "./kit.js";

const SHOWN = new Map();

/** Fetch the piece at `address` as text; throws CallError. The browser sends its ETag by itself. */
async function fetchPart(address) {
  let answer;
  try {
    answer = await fetch(address, { headers: { Accept: "application/json", ...tokenHeader() } });
  } catch {
    throw new CallError(0, [{ code: "offline", message: t("error.offline") }]);
  }
  const text = await answer.text();
  if (answer.ok) return text;
  let problems;
  try { problems = JSON.parse(text).error.problems; } catch { problems = null; }
  throw new CallError(answer.status, problems?.length ? problems : [{ code: `http_${answer.status}`, message: t("error.strange") }]);
}

/** Put `html` from our own server into `container`, keeping the focus on what carries the same data-keep. */
function place(container, html) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  const range = document.createRange();
  range.selectNodeContents(container);
  container.replaceChildren(range.createContextualFragment(html));
  if (focused) $(`[data-keep="${CSS.escape(focused)}"]`, container)?.focus({ preventScroll: true });
}

/** Bring `container` up to date unless `wanted()` says no by then; resolves to true when it changed. */
export async function refresh(container, address = container.dataset.part, wanted = () => true) {
  const html = await fetchPart(address);
  if (!wanted()) return false;
  container.removeAttribute("aria-busy");
  if (SHOWN.get(container) === html) return false;
  SHOWN.set(container, html);
  place(container, html);
  return true;
}

/** Refresh `container` every `seconds()` while the page is looked at, and at once when it is looked at again. */
export function keepFresh(container, seconds, onChange = () => {}) {
  let timer = 0;
  const once = async () => {
    clearTimeout(timer);
    try {
      if (!document.hidden && await refresh(container)) onChange();
    } catch (error) {
      if (!(error instanceof CallError)) throw error; // the server is away: the next turn asks again
    } finally {
      clearTimeout(timer);
      timer = setTimeout(once, seconds() * 1000);
    }
  };
  window.addEventListener("focus", once);
  document.addEventListener("visibilitychange", once);
  timer = setTimeout(once, seconds() * 1000);
  return once;
}

/** Let every [data-delete] button ask, delete under `kind` ("datasets" or "models") and then call `after(button)`. */
export function deleting(kind, after) {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-delete]");
    if (!button) return;
    const name = button.dataset.title ?? button.dataset.delete;
    const text = t(button.dataset.text ?? "delete.text");
    if (!await confirmDialog({ title: t("delete.title", { name }), text, action: t("delete") })) return;
    button.disabled = true;
    try {
      await call("DELETE", `${kind}/${encodeURIComponent(button.dataset.delete)}`);
      toast(t("delete.done", { name }));
      after(button);
    } catch (error) {
      button.disabled = false;
      if (!(error instanceof CallError)) throw error;
      toast(error.problems.map((problem) => [problem.message, problem.remedy].filter(Boolean).join(" ")).join(" "), true);
    }
  });
}
