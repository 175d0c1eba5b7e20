// The page of all datasets: upload by button or by dropping files anywhere; the list keeps itself fresh.

import { $, $$, CallError, bytes, call, el, icon, number, percent, t, tokenHeader, write } from "./kit.js";
import { deleting, keepFresh } from "./parts.js";

const POLL_SECONDS = 3;
const list = $("#list");
const files = $("#files");
const uploads = $("#uploads");
const waiting = [];
let sending = false;

const look = keepFresh(list, () => POLL_SECONDS, () => { $("#add").hidden = !$("table", list); });
deleting("datasets", look);

const problemList = (problems) => el("ul", { class: "plain" }, problems.map((problem) => el("li", {}, problem.message,
  problem.remedy ? el("span", { class: "muted" }, ` ${problem.remedy}`) : null, " ", el("code", { class: "code" }, problem.code))));

/** One line of the list of uploads. `failed(problems)` and `done(info, errors)` end it. */
function line(name, size) {
  const bar = el("progress", { max: 1, value: 0, "aria-label": t("upload.progress", { name }) });
  const state = el("span", { class: "small muted num" }, t("upload.waiting"));
  const stop = el("button", { class: "button quiet small icon-only", type: "button", "aria-label": t("upload.stop", { name }) }, icon("close"));
  const below = el("div", { class: "upload-below" }, bar);
  const node = el("li", { class: "upload" }, el("div", { class: "row between" }, el("strong", { class: "file-name grow" }, name),
    el("span", { class: "small muted num" }, size === null ? "" : bytes(size)), state, stop), below);
  $("#uploads-list").append(node);
  uploads.hidden = false;
  return {
    node, stop, state, bar,
    end(text, ...more) { stop.remove(); bar.remove(); write(state, text); below.replaceChildren(...more); },
    failed(problems, words = t("upload.failed")) {
      this.end(words, problemList(problems));
      node.classList.add("bad");
      below.setAttribute("role", "alert");
    },
    /** `errors` are the groups of the report that block training. */
    done(info, errors) {
      const problems = (info.errors ?? 0) + (info.warnings ?? 0);
      const summary = info.errors === null ? "" : problems ? t("upload.problems", { n: number(problems) }) : t("upload.fine");
      this.end(info.rows ? t(info.rows === 1 ? "upload.one" : "upload.done", { rows: number(info.rows) }) : "", errors.length ? problemList(errors) : "",
        el("p", { class: "small" }, summary, " ", el("a", { href: `/datasets/${encodeURIComponent(info.name)}` }, t("upload.open"))));
      node.classList.add(info.errors ? "bad" : "ok");
      if (info.name !== name) write($(".file-name", node), `${name} → ${info.name}`);
    },
  };
}

/** What blocks training in a file that was just added; nothing when that cannot be learned now, for the list shows it too. */
async function errorsOf(info) {
  if (!info.errors) return [];
  try {
    return (await call("GET", `datasets/${encodeURIComponent(info.name)}`)).report.errors;
  } catch (error) {
    if (error instanceof CallError) return [];
    throw error;
  }
}

/** Send one file; always resolves, for a failure is shown on its line. XMLHttpRequest, because fetch tells no progress. */
function send(file, shown) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    const body = new FormData();
    body.append("file", file, file.name);
    request.open("POST", "/api/v1/datasets");
    for (const [name, value] of Object.entries({ Accept: "application/json", ...tokenHeader() })) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      if (!event.lengthComputable) return;
      shown.bar.value = event.loaded / event.total;
      write(shown.state, t("upload.sending", { percent: percent(event.loaded / event.total) }));
    };
    request.upload.onload = () => { shown.bar.removeAttribute("value"); write(shown.state, t("upload.looking")); };
    request.onload = () => {
      let answer;
      try { answer = JSON.parse(request.responseText); } catch { answer = {}; }
      if (request.status === 201) return resolve(errorsOf(answer).then((errors) => shown.done(answer, errors)));
      shown.failed(answer.error?.problems ?? [{ code: `http_${request.status}`, message: t("error.strange") }]);
      return resolve();
    };
    request.onerror = () => { shown.failed([{ code: "offline", message: t("error.offline") }]); resolve(); };
    request.onabort = () => { shown.end(t("upload.stopped")); resolve(); };
    shown.stop.onclick = () => request.abort();
    request.send(body);
  });
}

async function work() {
  if (sending) return;
  sending = true;
  while (waiting.length) {
    const { file, shown } = waiting.shift();
    await send(file, shown);
    await look();
  }
  sending = false;
}

function add(given) {
  for (const file of given) {
    const shown = line(file.name, file.size);
    const entry = { file, shown };
    shown.stop.onclick = () => { waiting.splice(waiting.indexOf(entry), 1); shown.end(t("upload.stopped")); };
    waiting.push(entry);
  }
  work();
}

$("#hub").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = $("#hub-id");
  const id = field.value.trim();
  if (!id) return;
  const shown = line(id, null);
  shown.bar.removeAttribute("value");
  shown.stop.remove();
  write(shown.state, t("hub.working"));
  uploads.scrollIntoView({ block: "nearest" });
  field.value = "";
  try {
    const info = await call("POST", "datasets/hub", { id });
    shown.done(info, await errorsOf(info));
    await look();
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    shown.failed(error.problems, t("hub.failed"));
    field.value = id;
  }
});
document.addEventListener("click", (event) => { if (event.target.closest("[data-upload]")) files.click(); });
files.addEventListener("change", () => { add([...files.files]); files.value = ""; });
$("#uploads-close").addEventListener("click", () => {
  for (const item of [...$("#uploads-list").children]) if (!$("progress", item)) item.remove();
  uploads.hidden = $("#uploads-list").children.length === 0;
  $$("[data-upload]").find((button) => button.offsetParent)?.focus();
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
let depth = 0;
const dropping = (on) => { depth = on ? depth : 0; document.body.classList.toggle("dropping", on); };
document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth += 1; dropping(true); } });
document.addEventListener("dragleave", (event) => { if (carriesFiles(event)) { depth -= 1; if (depth <= 0) dropping(false); } });
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  dropping(false);
  const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
  const folders = items.map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory).map((entry) => entry.name);
  for (const name of folders) line(name, null).failed([{ code: "folder", message: t("upload.folder", { name }) }]);
  add([...event.dataTransfer.files].filter((file) => !folders.includes(file.name)));
});
