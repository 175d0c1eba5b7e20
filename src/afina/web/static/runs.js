// The Runs pages: the table that sorts, finds, follows and compares; and what can be done with one run.

import { $, $$, call, collate, confirmDialog, data, duration, el, loss, memory, number, t, toast, write } from "./kit.js";
import { Chart, nearest, smooth } from "./chart.js";
import { History, RunPanel, statusBadge } from "./run.js";

const table = $("#runs");
const COLORS = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6"];

// ---------------------------------------------------------------- sorting and finding
let order = memory.get("runs.order") ?? { key: "created", down: true };

function sortRows() {
  const heads = $$("thead th", table);
  const column = heads.findIndex((head) => head.dataset.key === order.key);
  for (const head of heads) {
    if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const numeric = heads[column].classList.contains("num");
  const value = (row) => row.children[column].dataset.sort ?? "";
  const body = $("tbody", table);
  const rows = [...body.children].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const compared = numeric ? Number(x) - Number(y) : collate(x, y);
    return order.down ? -compared : compared;
  });
  body.append(...rows);
}

function findRows() {
  const words = $("#find").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of $$("tbody tr", table)) {
    row.hidden = !words.every((word) => row.dataset.find.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  $("#nothing-found").hidden = shown > 0;
}

// ---------------------------------------------------------------- following
let known = "";

/** Rows anew from the server, ticks kept: after a run began, ended or was removed. */
async function refresh() {
  const answer = await fetch("/runs", { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const rows = $("#runs tbody", page);
  if (!rows) return;
  const ticked = new Set($$(".compare:checked", table).map((box) => box.value));
  $("tbody", table).replaceWith(document.adoptNode(rows));
  for (const box of $$(".compare", table)) box.checked = ticked.has(box.value);
  sortRows();
  findRows();
}

function followRuns(runs) {
  const now = runs.map((run) => run.id).join(" ");
  if (now !== known) {
    const before = known;
    known = now;
    if (before || runs.some((run) => !$(`tr[data-id="${CSS.escape(run.id)}"]`, table))) refresh().catch(() => toast(t("error.offline"), true));
  }
  for (const run of runs) {
    const row = $(`tr[data-id="${CSS.escape(run.id)}"]`, table);
    if (!row) continue;
    const cell = (name) => $(`[data-cell="${name}"]`, row);
    if (cell("status").dataset.sort !== run.status) cell("status").replaceChildren(statusBadge(run.status));
    for (const [name, value, shown] of [["status", run.status, null], ["train", run.train_loss, loss(run.train_loss)],
      ["validation", run.validation_loss, loss(run.validation_loss)], ["seconds", run.seconds, duration(run.seconds)]]) {
      cell(name).dataset.sort = value ?? "";
      if (shown !== null) write(cell(name), shown);
    }
  }
}

// ---------------------------------------------------------------- comparing
const fetched = new Map();
let chart = null;
let which = "train";

async function fetchRun(id) {
  if (!fetched.has(id)) {
    const path = `runs/${encodeURIComponent(id)}`;
    const [info, log] = await Promise.all([call("GET", path), call("GET", `${path}/events?offset=0`)]);
    const history = new History();
    for (const event of log.events) history.add(event);
    fetched.set(id, { info, history });
  }
  return fetched.get(id);
}

function curve({ history }) {
  return which === "train" ? { xs: history.steps.x, ys: smooth(history.steps.loss) } : { xs: history.evals.x, ys: history.evals.loss };
}

function drawCurves(runs) {
  const series = runs.map((run, at) => ({ ...curve(run), color: COLORS[at % COLORS.length], dash: at, width: 2, dots: which === "validation" }));
  chart ??= new Chart($("#compare-chart"), { empty: t("chart.empty") });
  chart.onRead = (x) => {
    const parts = x === null ? [] : [t("step", { step: number(x) }), ...runs.map((run, at) => {
      const { xs, ys } = series[at];
      return x >= xs[0] && x <= xs.at(-1) ? `${run.info.name} ${loss(ys[nearest(xs, x)])}` : null;
    })].filter(Boolean);
    write($("#compare-reading"), parts.join(" · "));
    return parts.join(", ");
  };
  chart.show(series);
  $("#compare-legend").replaceChildren(...runs.map((run, at) => el("li", {}, el("span", { class: `swatch s${(at % COLORS.length) + 1}` }), run.info.name)));
}

function drawDifferences(runs) {
  const { settings, choices } = data("labels");
  const shown = (value) => {
    if (value === null || value === undefined || value === "" || (Array.isArray(value) && !value.length)) return t("unset");
    if (Array.isArray(value)) return value.map((one) => (one?.name ? `${one.name}${one.weight === 1 ? "" : ` × ${number(one.weight, 2)}`}` : one)).join(", ");
    return typeof value === "number" ? number(value, 8) : choices[value] ?? String(value);
  };
  const names = settings.filter(([name]) => name !== "name" && new Set(runs.map(({ info }) => JSON.stringify(info.spec[name] ?? null))).size > 1);
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("setting")), runs.map(({ info }) => el("th", { scope: "col" }, info.name))));
  const rows = names.map(([name, label]) => el("tr", {}, el("th", { scope: "row" }, label), runs.map(({ info }) => el("td", {}, shown(info.spec[name])))));
  const none = el("tr", {}, el("td", { class: "muted", colspan: runs.length + 1 }, t("same")));
  $("#differences").replaceChildren(head, el("tbody", {}, rows.length ? rows : none));
}

async function compare() {
  const ids = $$(".compare:checked", table).map((box) => box.value);
  const address = new URL(location.href);
  if (ids.length) address.searchParams.set("compare", ids.join(","));
  else address.searchParams.delete("compare");
  history.replaceState(null, "", address);
  const section = $("#comparison");
  if (ids.length < 2) { section.hidden = true; return; }
  try {
    const runs = await Promise.all(ids.map(fetchRun));
    section.hidden = false;
    drawCurves(runs);
    drawDifferences(runs);
  } catch (error) { toast(error.message, true); }
}

function startTable() {
  table.tHead.addEventListener("click", (event) => {
    const key = event.target.closest("th")?.dataset.key;
    if (!key || !event.target.closest("button")) return;
    order = { key, down: order.key === key ? !order.down : ["train", "validation", "name"].includes(key) === false };
    memory.set("runs.order", order);
    sortRows();
  });
  $("#find").addEventListener("input", findRows);
  table.addEventListener("change", (event) => { if (event.target.matches(".compare")) compare(); });
  $("#which").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    which = button.value;
    for (const other of $$("button", $("#which"))) other.setAttribute("aria-pressed", String(other === button));
    compare();
  });
  $("#compare-close").addEventListener("click", () => {
    for (const box of $$(".compare:checked", table)) box.checked = false;
    compare();
  });
  window.addEventListener("afina:runs", (event) => followRuns(event.detail));
  sortRows();
  const asked = new Set((new URLSearchParams(location.search).get("compare") ?? "").split(","));
  for (const box of $$(".compare", table)) box.checked = asked.has(box.value);
  if (asked.size > 1) compare();
}

// ---------------------------------------------------------------- one run
function startRun(info) {
  const button = $("#delete-run");
  const panel = new RunPanel($("#run"), info);
  window.addEventListener("afina:runs", (event) => {
    button.disabled = event.detail.some((run) => run.id === info.id && run.status !== "queued");
  });
  button.addEventListener("click", async () => {
    if (!await confirmDialog({ title: t("delete.title"), text: t("delete.text"), action: t("delete.action") })) return;
    try {
      await call("DELETE", `runs/${encodeURIComponent(info.id)}`);
      panel.destroy();
      location.assign("/runs");
    } catch (error) { toast(error.message, true); }
  });
}

if (table) startTable();
const one = data("run-data");
if (one) startRun(one);
