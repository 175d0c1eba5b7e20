// Writing a row: a form with a field for each turn, or one for a text. Loaded when the first row is written.
// Knows nothing of the page around it but what to call when a row is saved.

import { $, $$, CallError, call, el, icon, problemNotice, t } from "./kit.js";

const ROLES = ["system", "user", "assistant", "tool"];

function turnFields(turn) {
  const role = el("select", { "aria-label": t("role") }, ROLES.map((name) => el("option", { value: name, selected: name === turn.role }, t(`role.${name}`))));
  const content = el("textarea", { rows: Math.min(12, Math.max(2, turn.content.split("\n").length)), "aria-label": t("content") }, turn.content);
  const remove = el("button", { class: "button quiet icon-only", type: "button", "aria-label": t("turn.remove"), title: t("turn.remove") }, icon("close"));
  const node = el("div", { class: "edit-turn" }, role, content, remove);
  remove.addEventListener("click", () => { const next = node.nextElementSibling ?? node.previousElementSibling; node.remove(); $("textarea", next ?? document)?.focus(); });
  // What a turn carries besides role and content (weight, tool calls) stays as it was.
  node.value = () => ({ ...turn, role: role.value, content: content.value });
  return node;
}

const emptyTurn = (role) => ({ role, content: "" });
const values = (list) => $$(".edit-turn", list).map((item) => item.value());

/** Fields for the turns of one part of a row, with a heading where a row has several parts. */
const part = (turns, title) => el("div", { class: "stack tight", role: title ? "group" : null, "aria-label": title ?? null },
  title ? el("p", { class: "small muted" }, title) : null, turns.map(turnFields));

/** The fields of a row and what they say: a text, a conversation, or what comes before two answers and the answers. */
function fields(row) {
  if (typeof row.text === "string") {
    const area = el("textarea", { rows: 8, "aria-label": t("text") }, row.text);
    return { nodes: [area], content: () => ({ text: area.value }) };
  }
  const turns = part(row.turns?.length || row.chosen ? row.turns ?? [] : [emptyTurn("user"), emptyTurn("assistant")], row.chosen ? t("before") : null);
  if (!row.chosen) return { nodes: [turns], turns, content: () => ({ messages: values(turns) }) };
  const chosen = part(row.chosen, t("chosen"));
  const rejected = part(row.rejected, t("rejected"));
  return { nodes: [turns, chosen, rejected], turns, content: () => ({ prompt: values(turns), chosen: values(chosen), rejected: values(rejected) }) };
}

/** A form for `row` ({turns}, {text}, or {turns, chosen, rejected}); `save(content)` sends it, `close()` puts things back. */
function form(legend, row, action, save, close) {
  const { nodes, turns, content } = fields(row);
  const more = turns ? el("button", { class: "button quiet small", type: "button" }, icon("plus"), t("turn.add")) : null;
  more?.addEventListener("click", () => {
    const last = turns.lastElementChild?.value?.().role;
    const added = turnFields(emptyTurn(last === "user" ? "assistant" : "user"));
    turns.append(added);
    $("textarea", added).focus();
  });
  const problems = el("div", {});
  const submit = el("button", { class: "button primary small", type: "submit" }, action);
  const node = el("form", { class: "row-form", novalidate: true, "aria-label": legend }, el("p", {}, el("strong", {}, legend)), nodes, problems,
    el("div", { class: "row between" }, more ?? el("span", {}), el("div", { class: "row" },
      el("button", { class: "button quiet small", type: "button", onclick: close }, t("cancel")), submit)));
  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) node.requestSubmit();
  });
  node.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    try {
      await save(content());
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      const notice = problemNotice(error.problems, t("edit.failed"));
      problems.replaceChildren(notice);
      notice.focus();
    } finally {
      submit.disabled = false;
    }
  });
  return node;
}

/** Let a person change the row whose list item is `item`. */
export async function edit(row, item, on) {
  const found = await call("GET", `${on.address}/rows?offset=${row - 1}&limit=1`);
  const shown = [...item.children];
  const close = () => { item.replaceChildren(...shown); $("[data-edit]", item)?.focus(); };
  const save = async (content) => {
    const step = await call("PUT", `${on.address}/rows/${row}`, { ...content, version: on.version });
    close();
    await on.changed();
    on.saved(step);
    on.focus(row);
  };
  const made = form(t("edit.legend", { n: row }), found.rows[0], t("save"), save, close);
  item.replaceChildren(shown[0], made);
  $("textarea", made).focus();
}

/** Let a person write a new row in `place`. */
export function add(place, on) {
  if (place.firstChild) { $("textarea", place).focus(); return; }
  const close = () => { place.replaceChildren(); $("#add-row").focus(); };
  const save = async (content) => {
    const step = await call("POST", `${on.address}/rows`, { rows: [content], version: on.version });
    place.replaceChildren();
    await on.changed();
    on.saved(step);
    $("#add-row").focus();
  };
  place.replaceChildren(form(t("new.legend"), {}, t("add"), save, close));
  $("textarea", place).focus();
}
