// The chat page: columns, composer, settings, and the conversation drawn turn by turn. An answer grows where it will stay.

import { $, $$, CallError, collate, data, el, icon, memory, number, problemNotice, t, toast, write } from "./kit.js";
import { Conversation, ask } from "./talk.js";

const DEFAULTS = { system: "", temperature: 0.7, top_p: 0.9, max_tokens: 512, precision: "auto" };
const NUMBERS = ["temperature", "top_p", "max_tokens"];
const NEAR = 160;
const models = data("models");
const talk = new Conversation();
const thread = $("#thread");
const prompt = $("#prompt");
const going = new Set();
let settings = { ...DEFAULTS, ...memory.get("chat") };
let cleared = null;

const find = (ref) => models.find((model) => model.id === ref) ?? models.find((model) => model.name === ref || model.aliases.includes(ref));
const nameOf = (id) => find(id)?.name ?? id;
const isTuned = (id) => (find(id)?.kind ?? "base") !== "base";

/* ---------------------------------------------------------------- columns */

function chooser(id, index) {
  const two = talk.columns.length === 2;
  const label = t(two ? ["model.left", "model.right"][index] : "model");
  const group = (title, listed) => (listed.length ? el("optgroup", { label: title },
    listed.map((model) => el("option", { value: model.id, selected: model.id === id }, model.name))) : null);
  const select = el("select", { "aria-label": label, id: `model-${index}` },
    group(t("base"), models.filter((model) => model.kind === "base").sort((a, b) => collate(a.name, b.name))),
    group(t("tuned"), models.filter((model) => model.kind !== "base").sort((a, b) => b.created - a.created)));
  select.addEventListener("change", () => { talk.columns[index] = select.value; columnsChanged(`#model-${index}`); });
  const close = two && el("button", { class: "button quiet icon-only", type: "button", "aria-label": t("column.close") }, icon("close"));
  if (close) close.addEventListener("click", () => { talk.columns.splice(index, 1); columnsChanged("#compare"); });
  return el("div", { class: isTuned(id) ? "column-head tuned" : "column-head" }, select, close);
}

function columnsChanged(focus) {
  const two = talk.columns.length === 2;
  $("#heads").replaceChildren(...talk.columns.map(chooser));
  $("#chat").classList.toggle("two", two);
  $("#compare").hidden = two;
  talk.save();
  if (focus) $(focus)?.focus();
}

/** The model to put beside `id`: its base, else the newest that was trained from it, else any other. */
function partner(id) {
  const others = models.filter((model) => model.id !== id).sort((a, b) => b.created - a.created);
  return others.find((model) => model.id === find(id).parent) ?? others.find((model) => model.parent === id) ?? others[0];
}

$("#compare").addEventListener("click", () => {
  const [id] = talk.columns;
  const other = partner(id);
  if (!other) { toast(t("one")); return; }
  talk.columns = isTuned(id) && !isTuned(other.id) ? [other.id, id] : [id, other.id];
  columnsChanged("#prompt");
});

/** Columns from the address (?model=…&base=…), else those of before, else the newest fine-tuned model. */
function firstColumns() {
  const asked = new URLSearchParams(location.search);
  const wanted = ["base", "model"].map((key) => asked.get(key)).filter(Boolean);
  const found = [...new Set(wanted.map((ref) => find(ref)?.id).filter(Boolean))];
  const lost = wanted.find((ref) => !find(ref)) ?? talk.columns.find((id) => !find(id));
  const start = models.filter((model) => model.kind !== "base").sort((a, b) => b.created - a.created)[0] ?? find("starter") ?? models[0];
  if (found.length && talk.turns.length && !found.some((id) => talk.knows(id))) talk.turns = [];
  const kept = talk.columns.filter(find).map((id) => find(id).id);
  talk.columns = found.length ? found : kept.length ? kept : [start.id];
  if (lost) toast(t("gone", { name: lost }), true);
  if (!wanted.length) return;
  history.replaceState(null, "", "/chat");
  // who came to talk with a certain model goes on by typing; on a phone that would raise the keyboard over the page
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus({ preventScroll: true });
}

/* ---------------------------------------------------------------- turns */

const small = (symbol, label, action) => el("button", { class: "button quiet small icon-only", type: "button", "aria-label": label, title: label, onclick: action }, icon(symbol));

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "visually-hidden" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("copied"));
}

function footOf(answer) {
  const parts = [];
  if (answer.stop_reason) parts.push(t(`stop.${answer.stop_reason}`));
  if (Number.isFinite(answer.tokens)) parts.push(t("tokens", { n: number(answer.tokens) }));
  if (Number.isFinite(answer.tokens_per_second)) parts.push(t("speed", { n: number(answer.tokens_per_second, 1) }));
  if (answer.precision) parts.push(answer.precision);
  return parts.join(" · ");
}

/** What the number format of the weights costs, in words; "" where it was not measured. */
function costOf(answer) {
  return Number.isFinite(answer.loss_rise) ? t("rise", { n: number(100 * answer.loss_rise, 2) }) : "";
}

/** The element of one answer; `node.grow(piece)`, `node.phase(text)` and `node.finish()` bring it along. */
function reply(answer, index) {
  const text = el("div", { class: "reply-text" }, answer.text);
  const foot = el("p", { class: "reply-foot" });
  const node = el("div", { class: isTuned(answer.model) ? "reply tuned" : "reply", role: "group", "aria-label": t("answer.of", { name: nameOf(answer.model) }) },
    el("p", { class: "reply-name" }, nameOf(answer.model)),
    talk.fresh(answer.model, index) ? el("p", { class: "reply-fresh" }, t("fresh", { name: nameOf(answer.model) })) : null, text, foot);
  node.grow = (piece) => {
    answer.text += piece;
    text.append(piece);
    text.normalize();
    node.phase(t("answering"));
  };
  node.phase = (words) => {
    if (foot.dataset.words === words) return;
    foot.dataset.words = words;
    foot.replaceChildren(el("span", { class: "wait", "aria-hidden": "true" }), words);
  };
  node.finish = () => {
    node.setAttribute("aria-busy", "false");
    text.hidden = false;
    if (answer.problems) text.replaceChildren(answer.text, problemNotice(answer.problems, t("failed")));
    else if (!answer.text.trim() && answer.stop_reason !== "cancelled") text.replaceChildren(el("span", { class: "muted" }, t("empty")));
    else if (!answer.text.trim()) text.hidden = true;
    foot.replaceChildren(el("span", { class: "num grow", title: costOf(answer) }, footOf(answer)), el("span", { class: "reply-acts" },
      answer.text ? small("copy", t("copy"), () => copy(answer.text)) : null,
      answer.text ? small("datasets", t("row"), async () => (await import("./make_row.js")).makeRow(talk.messages(answer.model, index, settings.system), answer.text)) : null,
      el("span", { class: "again" }, small("again", t("again"), () => again(index, answer.model)))));
  };
  return node;
}

function said(turn, index) {
  const node = el("div", { class: "said" }, el("p", { class: "visually-hidden" }, t("you")), el("p", { class: "said-text" }, turn.prompt),
    el("div", { class: "said-acts" }, small("edit", t("edit"), () => edit(node, turn, index)), small("copy", t("copy"), () => copy(turn.prompt))));
  return node;
}

function exchange(turn, index) {
  const replies = el("div", { class: turn.answers.length === 2 ? "replies two" : "replies" });
  const node = el("article", { class: "exchange" }, said(turn, index), replies);
  for (const answer of turn.answers) {
    const shown = reply(answer, index);
    replies.append(shown);
    if (answer.stop_reason || answer.problems) shown.finish();
  }
  return node;
}

/** Write to a question again: what came after it goes. */
function edit(node, turn, index) {
  if (going.size) return;
  const area = el("textarea", { rows: 2, "aria-label": t("edit.label") }, turn.prompt);
  const back = () => {
    const shown = said(turn, index);
    form.replaceWith(shown);
    $("button", shown).focus();
  };
  const form = el("form", { class: "said editing" }, area, el("div", { class: "row end" },
    el("button", { class: "button quiet small", type: "button", onclick: back }, t("cancel")),
    el("button", { class: "button primary small", type: "submit" }, t("edit.save"))));
  form.addEventListener("submit", (event) => { event.preventDefault(); if (area.value.trim()) { cut(index); send(area.value); } });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") back();
    if (enters(event)) { event.preventDefault(); form.requestSubmit(); }
  });
  node.replaceWith(form);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function cut(index) {
  talk.turns.length = index;
  while (thread.children.length > index) thread.lastElementChild.remove();
}

/* ---------------------------------------------------------------- asking */

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR;
const toEnd = () => scrollTo({ top: document.documentElement.scrollHeight });

function busy() {
  const now = going.size > 0;
  const [leaving, coming] = now ? [$("#send"), $("#stop")] : [$("#stop"), $("#send")];
  coming.hidden = false;
  if (document.activeElement === leaving) (now ? coming : prompt).focus(); // a hidden button would lose the focus
  leaving.hidden = true;
  $("#chat").classList.toggle("busy", now);
  $("#clear").disabled = now;
  $("#hints").hidden = talk.turns.length > 0;
  $("#thread").hidden = talk.turns.length === 0;
}

/** Let `model` answer the turn at `index` into `shown`, the element of that answer. */
async function answerTo(index, answer, shown) {
  const stop = new AbortController();
  going.add(stop);
  busy();
  shown.setAttribute("aria-busy", "true");
  shown.phase(t("thinking"));
  const follow = (action) => { const end = atEnd(); action(); if (end) toEnd(); };
  let waiting = ""; // pieces may come faster than a page is drawn
  const grow = () => {
    const piece = waiting;
    waiting = "";
    if (piece) follow(() => shown.grow(piece));
  };
  try {
    const messages = talk.messages(answer.model, index, settings.system);
    const last = await ask(answer.model, messages, settings, stop.signal, {
      phase: (name) => shown.phase(t(name === "loading" ? "loading" : "thinking")),
      text: (piece) => {
        if (!waiting) requestAnimationFrame(grow);
        waiting += piece;
      },
    });
    const { stop_reason, tokens, tokens_per_second, precision, loss_rise } = last;
    Object.assign(answer, { stop_reason, tokens, tokens_per_second, precision, loss_rise });
  } catch (error) {
    if (error.name === "AbortError") answer.stop_reason = "cancelled";
    else if (error instanceof CallError) answer.problems = error.problems;
    else throw error;
  } finally {
    going.delete(stop);
    grow();
    follow(() => shown.finish());
    busy();
    talk.save();
  }
}

function send(text) {
  const turn = { prompt: text.trim(), answers: talk.columns.map((model) => ({ model, text: "" })) };
  const index = talk.turns.push(turn) - 1;
  const node = exchange(turn, index);
  thread.append(node);
  cleared = null;
  $("#undo").hidden = true;
  turn.answers.forEach((answer, place) => answerTo(index, answer, $$(".reply", node)[place]));
  talk.save();
  toEnd();
}

function again(index, model) {
  if (going.size) return;
  const turn = talk.turns[index];
  const place = turn.answers.findIndex((answer) => answer.model === model);
  turn.answers[place] = { model, text: "" };
  const shown = reply(turn.answers[place], index);
  $$(".reply", thread.children[index])[place].replaceWith(shown);
  answerTo(index, turn.answers[place], shown);
  prompt.focus({ preventScroll: true });
}

/* ---------------------------------------------------------------- composer, settings */

const enters = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
const grow = () => { prompt.rows = Math.min(8, prompt.value.split("\n").length); };

prompt.addEventListener("keydown", (event) => { if (enters(event)) { event.preventDefault(); $("#composer").requestSubmit(); } });
prompt.addEventListener("input", grow);
$("#composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (going.size || !prompt.value.trim() || !settled()) return;
  send(prompt.value);
  prompt.value = "";
  grow();
});
function stopAll() { for (const stop of going) stop.abort(); prompt.focus(); }
$("#stop").addEventListener("click", stopAll);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && going.size) stopAll(); });
for (const hint of $$("[data-hint]")) hint.addEventListener("click", () => { if (settled()) { send(hint.textContent); prompt.focus(); } });

$("#clear").addEventListener("click", () => {
  if (!talk.turns.length) return;
  cleared = talk.turns;
  talk.turns = [];
  thread.replaceChildren();
  talk.save();
  busy();
  $("#undo").hidden = false;
  $("#undo").focus();
});
$("#undo").addEventListener("click", () => {
  talk.turns = cleared ?? [];
  $("#undo").hidden = true;
  draw();
  talk.save();
  prompt.focus();
});

function openPanel(open) {
  $("#panel").hidden = !open;
  $("#options").setAttribute("aria-expanded", String(open));
}
$("#options").addEventListener("click", () => {
  openPanel($("#panel").hidden);
  if (!$("#panel").hidden) $("#s-system").focus();
});

function showSettings() { for (const name of Object.keys(DEFAULTS)) $(`#s-${name}`).value = settings[name]; }

/** Read the settings; false when one is out of its limits, which is then said beside it. */
function settled() {
  const read = { system: $("#s-system").value, precision: $("#s-precision").value || "auto" };
  let wrong = null;
  for (const name of NUMBERS) {
    const field = $(`#s-${name}`);
    const ok = field.valueAsNumber >= Number(field.min) && field.valueAsNumber <= Number(field.max);
    write($(`#s-${name}-error`), ok ? "" : t("limit", { low: number(Number(field.min), 2), high: number(Number(field.max)) }));
    field.setAttribute("aria-invalid", String(!ok));
    if (ok) read[name] = name === "max_tokens" ? Math.round(field.valueAsNumber) : field.valueAsNumber;
    else wrong ??= field;
  }
  settings = { ...settings, ...read };
  memory.set("chat", settings);
  if (wrong) { openPanel(true); wrong.focus(); }
  return !wrong;
}
$("#panel").addEventListener("change", settled);
$("#panel").addEventListener("submit", (event) => event.preventDefault());
$("#panel").addEventListener("reset", (event) => { event.preventDefault(); settings = { ...DEFAULTS }; showSettings(); settled(); });

/* ---------------------------------------------------------------- start */

function draw() {
  thread.replaceChildren(...talk.turns.map(exchange));
  busy();
}

talk.restore();
firstColumns();
showSettings();
columnsChanged();
draw();
if (talk.turns.length) toEnd();
addEventListener("pagehide", () => talk.save());
