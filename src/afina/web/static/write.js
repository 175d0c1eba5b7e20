// Writing a dataset: pairs go into one text, which the server reads as it would read a file, and shows what it understands.

import { $, CallError, call, data, el, memory, number, problemNotice, settle, showProblems, t } from "./kit.js";

const text = $("#text");
const preview = $("#preview");
const formats = data("formats");
let turn = 0;

const label = (name, said) => `${t(name)}: ${said.trim()}`;

$("#pair").addEventListener("submit", (event) => {
  event.preventDefault();
  const [question, answer] = [$("#question"), $("#answer")];
  const empty = [question, answer].find((area) => !area.value.trim());
  question.setCustomValidity("");
  if (empty) { empty.setCustomValidity(t("both")); empty.reportValidity(); return; }
  const before = text.value.trimEnd();
  text.value = `${before}${before ? "\n\n" : ""}${label("question", question.value)}\n${label("answer", answer.value)}\n`;
  question.value = answer.value = "";
  question.focus();
  changed();
});
for (const area of [$("#question"), $("#answer")]) {
  area.addEventListener("input", () => area.setCustomValidity(""));
  area.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("#pair").requestSubmit(); });
}

const turnOf = (role, name, content) => el("div", { class: `turn ${role}` }, el("span", { class: "role" }, name), el("p", {}, content));
function rowOf(row) {
  const said = row.text ? [el("p", { class: "document" }, row.text)] : (row.turns ?? []).map((item) => turnOf(item.role, t(`role.${item.role}`), item.content));
  return el("li", { class: "preview-row" }, said, row.problems.map((problem) => el("p", { class: "row-problem" }, problem.message)));
}

function draw({ rows, report }) {
  const count = report.rows === 1 ? t("one.row") : t("rows", { n: number(report.rows) });
  const groups = [...report.errors, ...report.warnings].filter((group) => group.code !== "few_rows");
  preview.replaceChildren(el("p", { class: "num" }, el("strong", {}, count), ` · ${formats[report.format] ?? "–"}`),
    groups.length ? problemNotice(groups, "", report.errors.length ? "bad" : "warn") : "",
    el("ol", { class: "plain" }, rows.map(rowOf)), report.rows > rows.length ? el("p", { class: "muted small" }, t("more", { n: number(report.rows - rows.length) })) : "");
}

async function look() {
  const mine = ++turn;
  if (!text.value.trim()) { preview.replaceChildren(el("p", { class: "muted" }, t("nothing"))); return; }
  try {
    const found = await call("POST", "datasets/preview", { text: text.value });
    if (mine === turn) draw(found);
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    if (mine === turn) showProblems(preview, error, t("preview.failed"));
  }
}

const soon = settle(look, 350);
function changed() {
  $("#save").disabled = !text.value.trim();
  memory.set("write", text.value);
  soon();
}
text.addEventListener("input", changed);

$("#keep").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("#save").disabled = true;
  try {
    const info = await call("POST", "datasets/written", { name: $("#f-name").value.trim(), text: text.value });
    memory.remove("write");
    location.href = `/datasets/${encodeURIComponent(info.name)}`;
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    showProblems($("#keep-problems"), error, t("keep.failed"));
    $("#keep-problems .notice").focus();
    $("#save").disabled = false;
  }
});

const kept = memory.get("write");
if (kept && !text.value) text.value = kept;
if (text.value.trim()) changed();
