// The page of one dataset: report, rows and history come as parts, because looking through a big file takes a while.
// Whatever changes the dataset makes a new version; afterwards all three are asked for again.

import { $, $$, CallError, call, confirmDialog, el, icon, memory, number, percent, settle, showProblems, t, toast, write } from "./kit.js";
import { deleting, refresh } from "./parts.js";

const root = $("#dataset");
const address = `datasets/${encodeURIComponent(root.dataset.name)}`;
const report = $("#report");
const rows = $("#rows");
const steps = $("#history");
const result = $("#result");
const model = $("#token-model");
const search = $("#search");
const problem = $("#problem");
let offset = Number(rows.dataset.offset) || 0;
let view = $("[data-view][aria-pressed='true']").dataset.view;
let length = root.dataset.length;
let turn = 0;
let columnsTurn = 0;

deleting("datasets", () => { location.href = "/datasets"; });

/* ---------------------------------------------------------------- the parts */

const withLength = (query) => { query.set("length", length); if (root.dataset.validation) query.set("validation", root.dataset.validation); return query; };

/** Bring a part up to date; what cannot be shown says why in its place. Resolves to whether it is there. */
async function show(part, query, failed, wanted) {
  part.setAttribute("aria-busy", "true");
  try {
    await refresh(part, `${part.dataset.part}&${query}`, wanted);
    return true;
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    showProblems(part, error, t(failed));
    return false;
  } finally {
    part.removeAttribute("aria-busy");
  }
}

/** The problems that rows can be chosen by, as the report names them. */
function offerProblems() {
  const wanted = problem.value || problem.dataset.wanted;
  delete problem.dataset.wanted;
  const found = $$(".problem[data-title]", report).map((item) => el("option", { value: item.dataset.code, selected: item.dataset.code === wanted }, item.dataset.title));
  problem.replaceChildren(problem.options[0], ...found);
}

/** While the file is looked through, say how far that is. Resolves to a function that ends it. */
function tellProgress() {
  const line = el("p", { class: "small muted num", role: "status" });
  const timer = setInterval(async () => {
    try {
      const at = await call("GET", `${address}/progress`);
      if (!at || !report.hasAttribute("aria-busy")) return;
      const box = $("section", report) ?? report;
      const head = $(":scope > h2", box);
      if (!line.isConnected) head ? head.after(line) : box.prepend(line);
      write(line, t("report.looking", { percent: percent(at.total ? at.done / at.total : 0) }));
    } catch (error) {
      if (!(error instanceof CallError)) throw error; // the look itself will say what is wrong
    }
  }, 700);
  return () => { clearInterval(timer); line.remove(); };
}

async function showReport() {
  const end = tellProgress();
  const shown = await show(report, withLength(new URLSearchParams()), "report.failed");
  end();
  if (!shown) return;
  $("#train").hidden = Number($("[data-errors]", report).dataset.errors) > 0;
  offerProblems();
  await showLengths();
}

const showLengths = () => show($("#lengths"), `length=${length}`, "report.failed");

/** Ask for the rows from `offset` on; a slower, earlier answer never replaces a later one. */
async function showRows({ remember = true } = {}) {
  const mine = ++turn;
  const query = withLength(new URLSearchParams({ offset, view }));
  if (view !== "turns") query.set("model", model.value);
  if (problem.value) query.set("problem", problem.value);
  if (search.value.trim()) query.set("search", search.value.trim());
  if (remember) history.replaceState(null, "", `?${query}`);
  for (const button of $$("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  $(".token-model").hidden = view === "turns";
  await show(rows, query, "rows.failed", () => mine === turn);
}

async function showColumns(query = "") {
  const mine = ++columnsTurn;
  await show($("#columns"), query, "report.failed", () => mine === columnsTurn);
  await followColumns();
}

async function followColumns() {
  const box = $("#columns");
  if ($("form", box) && !box.dataset.ready) {
    box.dataset.ready = "yes";
    (await import("./columns.js")).explain(box, address, showColumns, async () => { await changed(); await showColumns(); });
  }
}

const showHistory = () => show(steps, "", "history.failed");
const version = () => $("[data-version]", rows)?.dataset.version;

function mark(row) {
  const found = document.getElementById(`row-${row}`);
  found?.scrollIntoView({ block: "center" });
  found?.focus({ preventScroll: true });
}

async function goTo(row) {
  problem.value = search.value = "";
  offset = Math.floor((row - 1) / 20) * 20;
  await showRows();
  mark(row);
}

/* ---------------------------------------------------------------- changing it */

/** Say what a step did, with the way to look at it and the way back. */
function tell(step) {
  const counts = ["removed", "changed", "added", "left_out"].filter((key) => step[key]).map((key) => t(`fix.${key}`, { n: number(step[key]) }));
  const words = `${[...counts, t("fix.rows", { n: number(step.rows) })].join(" · ")} `;
  result.replaceChildren(el("div", { class: "notice ok" }, icon("check"), el("div", {}, el("strong", {}, step.message), el("p", { class: "num" }, words)),
    el("div", { class: "row" }, el("button", { class: "button quiet small", type: "button", "data-diff": `${step.parent} ${step.number}` }, t("fix.look")),
      el("button", { class: "button small", type: "button", "data-go": step.parent }, icon("again"), t("fix.undo")))));
}

/** Ask for everything again. The rows do not wait for the report, which takes a while on a big dataset. */
async function changed() {
  $("#diff").replaceChildren();
  const wanted = problem.value;
  showReport().then(() => {
    if (problem.value === wanted) return;
    offset = 0;
    showRows();
  });
  await Promise.all([showRows(), showHistory()]);
}

/** Ask the server for a change; what it answers is told, what went wrong too. */
async function change(method, path, body, button) {
  if (button) button.disabled = true;
  result.replaceChildren(el("p", { class: "muted" }, t("fix.working")));
  try {
    const step = await call(method, `${address}/${path}`, body);
    await changed(); // what is said comes last: only then do the row numbers on the page hold again
    if (step.message === undefined) { result.replaceChildren(); toast(t("back.done")); } else tell(step);
    result.scrollIntoView({ block: "nearest" });
    result.focus({ preventScroll: true });
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    showProblems(result, error, t("fix.failed"));
    $(".notice", result).focus();
    if (button) button.disabled = false;
  }
}

async function removeRows(numbers) {
  if (!await confirmDialog({ title: t("remove.title"), text: t("remove.text"), action: t("remove") })) return;
  await change("POST", "rows/remove", { rows: numbers, version: version() });
}

async function showDiff(before, after, at = 0) {
  const box = $("#diff");
  box.dataset.part = `/${address}/diff?before=${before}&after=${after}`;
  if (await show(box, `offset=${at}`, "history.failed")) {
    box.scrollIntoView({ block: "start" });
    box.focus({ preventScroll: true });
  }
}

const actions = {
  fix: (button) => change("POST", "fix", { code: button.dataset.fix, way: button.dataset.way, max_length: Number(length),
    ...(root.dataset.validation ? { validation: root.dataset.validation } : {}) }, button),
  go: (button) => change("POST", "history", { step: Number(button.dataset.go) }, button),
  again: (button) => change("POST", "history", { step: null }, button),
  diff: (button) => { const [before, after] = button.dataset.diff.split(" "); showDiff(before, after, button.dataset.at); },
  close: () => { $("#diff").replaceChildren(); $("#history-title").scrollIntoView({ block: "start" }); },
  only: async (button) => { problem.value = button.dataset.only; search.value = ""; offset = 0; await showRows(); $("#rows-title").scrollIntoView({ block: "start" }); problem.focus({ preventScroll: true }); },
  remove: (button) => removeRows([Number(button.dataset.remove)]),
  edit: async (button) => (await import("./editor.js")).edit(Number(button.dataset.edit), button.closest("li"), { address, version: version(), saved: tell, changed, focus: mark }),
};
root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const name = button && Object.keys(actions).find((key) => key in button.dataset);
  if (name) actions[name](button);
});
$("#add-row").addEventListener("click", async () => (await import("./editor.js")).add($("#new-row"), { address, version: version(), saved: tell, changed }));

/* ---------------------------------------------------------------- looking at rows */

const picked = () => $$("[data-pick]:checked", rows).map((box) => Number(box.dataset.pick));
rows.addEventListener("change", (event) => { if (event.target.closest("[data-pick]")) $("#remove-picked").hidden = picked().length === 0; });
rows.addEventListener("click", async (event) => {
  if (event.target.closest("#remove-picked")) { removeRows(picked()); return; }
  const link = event.target.closest("a[data-offset]");
  if (!link) return;
  event.preventDefault();
  offset = Number(link.dataset.offset);
  await showRows();
  $("#rows-title").scrollIntoView({ block: "start" });
});
report.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-row]");
  if (!link) return;
  event.preventDefault();
  goTo(Number(link.dataset.row));
});
report.addEventListener("change", async (event) => {
  if (event.target.id !== "length" || !event.target.checkValidity() || !event.target.value) return;
  length = event.target.value;
  memory.set("dataset.length", length);
  await showReport();
  if (view !== "turns") showRows();
});
for (const button of $$("[data-view]")) button.addEventListener("click", () => { view = button.dataset.view; showRows(); });
model.addEventListener("change", () => { memory.set("tokens.model", model.value); showRows(); });
problem.addEventListener("change", () => { offset = 0; showRows(); });
search.addEventListener("input", settle(() => { offset = 0; showRows(); }, 300));
$("#find").addEventListener("submit", (event) => { event.preventDefault(); offset = 0; showRows(); });

/* ---------------------------------------------------------------- beginning */

const asked = new URLSearchParams(location.search);
let first = rows.hasAttribute("aria-busy");
const remembered = memory.get("tokens.model");
if (!asked.has("model") && remembered !== model.value && [...model.options].some((option) => option.value === remembered)) {
  model.value = remembered;
  first ||= view !== "turns";
}
const kept = memory.get("dataset.length");
const other = !asked.has("length") && kept && kept !== length;
if (other) length = kept;
if (report.hasAttribute("aria-busy") || other) showReport();
else { offerProblems(); showLengths(); }
if ($("#columns").hasAttribute("aria-busy")) showColumns();
else followColumns();
if (steps.hasAttribute("aria-busy")) showHistory();
(first ? showRows({ remember: false }) : Promise.resolve()).then(() => { if (location.hash) mark(location.hash.slice(5)); });
