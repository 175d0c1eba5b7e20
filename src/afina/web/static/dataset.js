// The page of one dataset: report and rows come as parts, because looking through a big file takes a while.

import { $, $$, CallError, memory, showProblems, t } from "./kit.js";
import { deleting, refresh } from "./parts.js";

const report = $("#report");
const rows = $("#rows");
const model = $("#token-model");
let offset = Number(rows.dataset.offset) || 0;
let view = $("[data-view][aria-pressed='true']").dataset.view;
let turn = 0;

deleting("datasets", () => { location.href = "/datasets"; });

async function showReport() {
  try {
    await refresh(report);
    $("#train").hidden = Number($("[data-errors]", report).dataset.errors) > 0;
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    showProblems(report, error, t("report.failed"));
  }
}

/** Ask for the rows from `offset` on; a slower, earlier answer never replaces a later one. */
async function showRows({ remember = true } = {}) {
  const mine = ++turn;
  const query = new URLSearchParams({ offset, view });
  if (view === "tokens") query.set("model", model.value);
  if (remember) history.replaceState(null, "", `?${query}`);
  rows.setAttribute("aria-busy", "true");
  for (const button of $$("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  $(".token-model").hidden = view !== "tokens";
  try {
    await refresh(rows, `${rows.dataset.part}&${query}`, () => mine === turn);
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    if (mine === turn) showProblems(rows, error, t("rows.failed"));
  }
  if (mine !== turn) return;
  rows.removeAttribute("aria-busy");
}

function mark(row) {
  const found = document.getElementById(`row-${row}`);
  found?.scrollIntoView({ block: "center" });
  found?.focus({ preventScroll: true });
}

for (const button of $$("[data-view]")) {
  button.addEventListener("click", () => { view = button.dataset.view; showRows(); });
}
model.addEventListener("change", () => { memory.set("tokens.model", model.value); showRows(); });

rows.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-offset]");
  if (!link) return;
  event.preventDefault();
  offset = Number(link.dataset.offset);
  await showRows();
  $("#rows-title").scrollIntoView({ block: "start" });
});
report.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-row]");
  if (!link) return;
  event.preventDefault();
  offset = Number(new URL(link.href).searchParams.get("offset"));
  await showRows();
  mark(link.dataset.row);
});

const remembered = memory.get("tokens.model");
let first = rows.hasAttribute("aria-busy");
if (!new URLSearchParams(location.search).has("model") && remembered !== model.value && [...model.options].some((option) => option.value === remembered)) {
  model.value = remembered;
  first ||= view === "tokens";
}
if (report.hasAttribute("aria-busy")) showReport();
(first ? showRows({ remember: false }) : Promise.resolve()).then(() => { if (location.hash) mark(location.hash.slice(5)); });
