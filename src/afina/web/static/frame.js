// The frame of every page: theme, menus, the strip of runs in progress, the banner when the connection is gone,
// and the one dialog that stops a run. Knows nothing of the page inside.

import { $, call, duration, icon, loss, t, toast, write } from "./kit.js";
import { Live } from "./live.js";

const YEAR = 31536000;
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SIGNS = { auto: "auto", light: "sun", dark: "moon" };

$("#theme").addEventListener("click", (event) => {
  const button = event.currentTarget;
  const theme = NEXT[button.dataset.themeNow];
  button.dataset.themeNow = theme;
  button.setAttribute("aria-label", t(`theme.${theme}`));
  button.replaceChildren(icon(SIGNS[theme]));
  document.cookie = `afina_theme=${theme}; path=/; max-age=${YEAR}; samesite=lax`;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  window.dispatchEvent(new Event("afina:theme"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("afina:theme")));

document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) { menu.open = false; menu.firstElementChild.focus(); }
});

/** Ask what to keep, then stop the run. Resolves to true when the run was asked to stop. */
export function askStop(id) {
  const dialog = $("#stop-dialog");
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", async () => {
      if (!dialog.returnValue) return resolve(false);
      try {
        await call("POST", `runs/${encodeURIComponent(id)}/stop`, { keep: dialog.returnValue });
        toast(t("stop.asked"));
        return resolve(true);
      } catch (error) {
        toast(error.message, true);
        return resolve(false);
      }
    }, { once: true });
    dialog.showModal();
  });
}

/** What a run is doing, in a few words: "Step 12 of 80 …" stands on the page; here only loss and time left. */
export function shortStatus(run) {
  const parts = [];
  if (run.status === "queued" && run.queue_position) parts.push(t("place", { n: run.queue_position }));
  else if (run.status !== "running") parts.push(t(run.status));
  if (Number.isFinite(run.train_loss)) parts.push(`${t("loss")} ${loss(run.train_loss)}`);
  if (run.status === "running" && Number.isFinite(run.seconds_left)) parts.push(t("left", { time: duration(run.seconds_left) }));
  return parts.join(" · ");
}

const strip = $("#strip");
let shown = null;

function showStrip(runs) {
  const run = runs.find((item) => item.status !== "queued") ?? runs[0];
  shown = run?.id ?? null;
  strip.hidden = !run;
  if (!run) return;
  const link = $(".strip-name", strip);
  write(link, run.name);
  link.href = `/runs/${encodeURIComponent(run.id)}`;
  const bar = $("progress", strip);
  if (run.total_steps) bar.value = run.step / run.total_steps;
  else bar.removeAttribute("value");
  const more = runs.length > 1 ? t("more", { n: runs.length - 1 }) : "";
  write($(".strip-numbers", strip), [shortStatus(run), more].filter(Boolean).join(" · "));
  $(".strip-stop", strip).disabled = run.status === "stopping";
}

$(".strip-stop", strip).addEventListener("click", () => { if (shown) askStop(shown); });
new Live(() => "live", (message) => {
  if (!message.runs) return;
  showStrip(message.runs);
  window.dispatchEvent(new CustomEvent("afina:runs", { detail: message.runs }));
});

let late = 0;
window.addEventListener("afina:line", (event) => {
  clearTimeout(late);
  if (event.detail) $("#offline").hidden = true;
  else late = setTimeout(() => { $("#offline").hidden = false; }, 1200);
});
