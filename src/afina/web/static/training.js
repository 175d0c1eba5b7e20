// The Training page: a form that survives a reload, says beforehand what will happen, and starts a run beside itself.

import { $, $$, CallError, bytes, call, data, duration, el, memory, number, problemNotice, settle, short, t, toast, write } from "./kit.js";
import { RunPanel } from "./run.js";

const form = $("#training-form");
const startButton = $("#start");
const panelRoot = $("#run");
const pristine = panelRoot.cloneNode(true);
let panel = null;
let planning = null;

// ---------------------------------------------------------------- the run beside the form
function showRun(info) {
  panel?.destroy();
  const fresh = pristine.cloneNode(true);
  $("#run").replaceWith(fresh);
  $("#no-run").hidden = true;
  panel = new RunPanel(fresh, info);
}

const first = data("run-data");
if (first) panel = new RunPanel(panelRoot, first);

// ---------------------------------------------------------------- reading and filling the form
const settings = () => $$("[data-kind]", form);
const picks = () => $$('input[name="dataset"]', form);
const weightOf = (pick) => $(".weight", pick.closest(".pick"));
const method = () => $('input[name="method"]:checked', form)?.value ?? "lora";

function valueOf(input) {
  const text = input.value.trim();
  const { kind } = input.dataset;
  if (kind === "number") return text === "" ? null : Number(text);
  if (kind === "lines") return text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (kind === "words") return text.split(/[,\n]/).map((word) => word.trim()).filter(Boolean);
  if (kind === "paragraph") return input.value;
  return text;
}

/** The form as a spec: what was left empty stays out, so that the defaults of the server hold. */
function spec() {
  const chosen = picks().filter((pick) => pick.checked);
  const made = {
    model: $("#f-model")?.value ?? "",
    dataset: chosen.map((pick) => ({ name: pick.value, weight: chosen.length > 1 ? Number(weightOf(pick).value) : 1 })),
    method: method(),
  };
  for (const input of settings()) {
    const value = valueOf(input);
    if (value !== null && value !== "" && !(Array.isArray(value) && !value.length)) made[input.name] = value;
  }
  return made;
}

const storage = "training";

function remember() {
  memory.set(storage, {
    model: $("#f-model")?.value, method: method(), open: $("#advanced").open,
    datasets: Object.fromEntries(picks().filter((pick) => pick.checked).map((pick) => [pick.value, weightOf(pick).value])),
    values: Object.fromEntries(settings().filter((input) => input.value !== input.dataset.default).map((input) => [input.name, input.value])),
  });
}

function recall() {
  const kept = memory.get(storage);
  if (!kept) return;
  const model = $("#f-model");
  if (model && [...model.options].some((option) => option.value === kept.model)) model.value = kept.model;
  const radio = $(`input[name="method"][value="${kept.method}"]`, form);
  if (radio) radio.checked = true;
  if (picks().some((pick) => pick.value in kept.datasets)) {
    for (const pick of picks()) {
      pick.checked = pick.value in kept.datasets;
      if (pick.checked) weightOf(pick).value = kept.datasets[pick.value];
    }
  }
  for (const input of settings()) if (input.name in kept.values) input.value = kept.values[input.name];
  $("#advanced").open = kept.open;
}

function follow() {
  const option = $("#f-model")?.selectedOptions[0];
  if (option) write($("#h-model"), option.dataset.facts || "\u00a0");
  const rate = $("#f-learning_rate");
  rate.placeholder = short(Number(rate.dataset[method()]), 3);
  $('[data-group="lora"]', form).hidden = method() !== "lora";
  const several = picks().filter((pick) => pick.checked).length > 1;
  for (const pick of picks()) weightOf(pick).parentElement.hidden = !(several && pick.checked);
  $("#mix").hidden = !mixable();
}

// ---------------------------------------------------------------- against forgetting: some general examples
const GENERAL_SHARE = 0.2;
const rowsOf = (pick) => Number(pick.dataset.rows) || 0;

/** What would be mixed: the general dataset and the rows of an epoch so far; null when there is nothing to offer. */
function mixable() {
  const general = picks().find((pick) => pick.value === $("#mix").dataset.general);
  const chosen = picks().filter((pick) => pick.checked);
  const rows = chosen.reduce((sum, pick) => sum + rowsOf(pick) * (chosen.length > 1 ? Number(weightOf(pick).value) : 1), 0);
  return general && !general.checked && rowsOf(general) && rows ? { general, rows } : null;
}

$("#mix button").addEventListener("click", () => {
  const { general, rows } = mixable();
  const weight = (rows * GENERAL_SHARE) / (1 - GENERAL_SHARE) / rowsOf(general);
  for (const pick of picks()) if (pick.checked && !weightOf(pick).value) weightOf(pick).value = "1";
  general.checked = true;
  weightOf(general).value = String(Math.min(100, Math.max(0.01, Number(weight.toPrecision(3)))));
  toast(t("mixed", { name: general.value }));
  changed();
  weightOf(general).focus();
});

// ---------------------------------------------------------------- problems at their fields
function clearMarks() {
  for (const node of $$(".error", form)) write(node, "");
  for (const node of $$("[aria-invalid]", form)) node.removeAttribute("aria-invalid");
}

/** On this page a setting is called by the words of its label, not by its name in commands. */
function inWords(problem) {
  const label = problem.field && $(`label[for="f-${problem.field}"] span`, form)?.textContent;
  const told = (text) => text?.replaceAll(`“${problem.field}”`, `“${label}”`);
  return label ? { ...problem, message: told(problem.message), remedy: told(problem.remedy) } : problem;
}

/** Mark each field; the summary takes the focus when the person pressed start. */
function showFieldProblems(found, focus) {
  const problems = found.map(inWords);
  clearMarks();
  if (!problems.length) $("#form-problems").replaceChildren();
  for (const problem of problems) {
    const field = problem.field?.split(".")[0];
    const place = document.getElementById(`e-${field}`);
    if (!place) continue;
    write(place, problem.message);
    document.getElementById(`f-${field}`)?.setAttribute("aria-invalid", "true");
    const fold = place.closest("details");
    if (fold && focus) fold.open = true;
  }
  if (!focus) return;
  const notice = problemNotice(problems, problems.some((problem) => problem.field) ? t("form.problems") : undefined);
  $("#form-problems").replaceChildren(notice);
  notice.scrollIntoView({ block: "center" });
  notice.focus({ preventScroll: true });
}

/** What the browser can tell by itself: no dataset, a number field with something else in it. */
function ownProblems() {
  const found = [];
  if (!picks().some((pick) => pick.checked)) found.push({ code: "missing_setting", field: "dataset", message: t("no.dataset") });
  for (const input of settings()) {
    if (input.dataset.kind === "number" && (input.validity.badInput || (input.required && !input.value.trim()))) {
      found.push({ code: "wrong_type", field: input.name, message: `${$(`label[for="${input.id}"] span`, form).textContent}: ${t("number.needed")}` });
    }
  }
  return found;
}

// ---------------------------------------------------------------- the consequence, beside Start
function showPlan(plan) {
  const known = plan.total_steps > 0;
  const cells = {
    rows: [known ? number(plan.rows) : "–", plan.validation_rows ? t("plan.rows", { n: number(plan.validation_rows) }) : ""],
    steps: [known ? number(plan.total_steps) : "–", ""],
    tokens: [number(plan.tokens), plan.cut_tokens ? t("plan.cut", { n: number(plan.cut_tokens) }) : ""],
    memory: [bytes(plan.memory), ""], seconds: [duration(plan.seconds), ""],
  };
  for (const [name, [value, more]] of Object.entries(cells)) {
    $(`[data-plan="${name}"]`).replaceChildren(value, ...(more ? [" ", el("small", {}, more)] : []));
  }
  showFieldProblems(plan.problems, false);
  const notes = [];
  if (plan.problems.length) notes.push(problemNotice(plan.problems.map(inWords), t("plan.problems"), "bad"));
  if (plan.warnings.length) notes.push(problemNotice(plan.warnings, t("plan.warnings"), "warn"));
  $("#plan-notes").replaceChildren(...notes);
  linkRemedies(plan);
  const why = $("#plan-why");
  why.hidden = !notes.length;
  why.classList.toggle("bad", plan.problems.length > 0);
  if (notes.length) write(why, t(plan.problems.length ? "plan.problems" : "plan.warnings"));
}

/** Beside what the workshop can put right, the way there. */
function linkRemedies({ problems, warnings }) {
  const chosen = picks().filter((pick) => pick.checked);
  const only = chosen.length === 1 ? chosen[0].value : null;
  const held = $("#f-validation_dataset").value;
  const names = [...problems.map((problem) => (problem.field === "dataset" && picks().some((pick) => pick.value === problem.value) ? problem.value : null)),
    ...warnings.map((group) => (group.remedies?.length ? only : null))];
  $$("#plan-notes li").forEach((item, place) => {
    const name = names[place];
    if (name) item.append(" ", el("a", { href: `/datasets/${encodeURIComponent(name)}?length=${$("#f-max_length").value || 1024}${held ? `&validation=${encodeURIComponent(held)}` : ""}` }, t("plan.fix")));
  });
}

async function plan() {
  planning?.abort();
  if (!$("#f-model") || ownProblems().length) { $("#estimate").classList.remove("waiting"); return; }
  planning = new AbortController();
  $("#estimate").classList.add("waiting");
  try {
    showPlan(await call("POST", "runs/plan", spec(), { signal: planning.signal }));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof CallError)) throw error;
    if (error.status) showPlan({ total_steps: 0, problems: error.problems, warnings: [] });
  }
  $("#estimate").classList.remove("waiting");
}
const planSoon = settle(plan, 400);

// ---------------------------------------------------------------- Check: the same, measured
let checking = null;
const checkButton = $("#check");

const say = (text) => write($("#checked"), text || t("check.what"));

async function check() {
  const own = ownProblems();
  if (own.length) { showFieldProblems(own, true); return; }
  planning?.abort();
  const mine = new AbortController();
  checking = mine;
  write($("span", checkButton), t("check.stop"));
  $("#estimate").classList.add("waiting");
  say(t("checking"));
  try {
    const found = await call("POST", "runs/check", spec(), { signal: mine.signal });
    showPlan(found);
    say(found.measured ? t("checked", { step: number(found.step_seconds, 1) }) : found.busy ? t("check.busy") : "");
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof CallError)) throw error;
    say("");
    if (error instanceof CallError) showFieldProblems(error.problems, true);
  } finally {
    if (checking === mine) {
      checking = null;
      write($("span", checkButton), t("check"));
      $("#estimate").classList.remove("waiting");
    }
  }
}

checkButton.addEventListener("click", () => (checking ? checking.abort() : check()));

function changed() {
  checking?.abort();
  say("");
  follow();
  remember();
  planning?.abort(); // its answer would be about what the form said before, and wipe away what is wrong now
  planSoon();
}

form.addEventListener("input", changed);
form.addEventListener("change", changed);
$("#advanced").addEventListener("toggle", remember);
$("#defaults").addEventListener("click", () => {
  for (const input of settings()) input.value = input.dataset.default;
  changed();
});
$("#forget")?.addEventListener("click", () => memory.remove(storage));

// ---------------------------------------------------------------- start
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const own = ownProblems();
  if (own.length) { showFieldProblems(own, true); return; }
  if (startButton.classList.contains("busy")) return;
  startButton.classList.add("busy"); // not disabled, for that would take the focus away
  try {
    const run = await call("POST", "runs", spec());
    showFieldProblems([], false);
    history.replaceState(null, "", `/training?run=${encodeURIComponent(run.id)}`);
    showRun(run);
    toast(t(run.status === "queued" && run.queue_position > 0 ? "queued.now" : "started"));
    $("#run").scrollIntoView({ block: "start", behavior: "smooth" });
    $("#run-name").focus({ preventScroll: true });
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    showFieldProblems(error.problems, true);
  } finally {
    startButton.classList.remove("busy");
  }
});
window.addEventListener("afina:runs", (event) => write($("span", startButton), t(event.detail.length ? "queue" : "start")));

// ---------------------------------------------------------------- datasets: add a file, notice new ones
function counted(one, many, n) { return n === 1 ? t(one) : t(many, { n: number(n) }); }

function pickRow(item, checked) {
  const facts = [item.rows === null ? "" : counted("one.row", "rows", item.rows), bytes(item.size)].filter(Boolean).join(" · ");
  const badge = item.errors ? el("span", { class: "badge bad" }, counted("one.error", "errors", item.errors))
    : item.warnings ? el("span", { class: "badge warn" }, counted("one.warning", "warnings", item.warnings)) : null;
  const box = el("input", { type: "checkbox", name: "dataset", value: item.name, dataset: { rows: item.rows ?? 0 } });
  box.checked = checked;
  return el("label", { class: "pick" }, box,
    el("span", { class: "grow" }, el("span", { class: "clip block" }, item.name), el("small", { class: "muted num" }, facts)), badge,
    el("span", { class: "weigh", hidden: true }, el("span", { class: "small muted", "aria-hidden": "true" }, t("weight")),
      el("input", { type: "number", class: "weight", step: "any", min: "0.01", max: "100", value: "1", "aria-label": t("weight.of", { name: item.name }) })));
}

/** Draw the list anew, keeping ticks and weights; `only` is the one to tick in their place. */
async function refreshDatasets(only) {
  const kept = Object.fromEntries(picks().filter((pick) => pick.checked).map((pick) => [pick.value, weightOf(pick).value]));
  const items = await call("GET", "datasets");
  $("#datasets").replaceChildren(...items.map((item) => pickRow(item, only ? item.name === only : item.name in kept)));
  for (const pick of picks()) if (pick.value in kept) weightOf(pick).value = kept[pick.value];
  $("#datasets").hidden = !items.length;
  $("#no-datasets").hidden = items.length > 0;
  $(":checked", $("#datasets"))?.scrollIntoView({ block: "nearest" });
  const select = $("#f-validation_dataset");
  const value = select.value;
  select.replaceChildren(select.options[0], ...items.map((item) => el("option", {}, item.name)));
  select.value = value;
  changed();
}

async function upload(files) {
  for (const file of files) {
    const body = new FormData();
    body.append("file", file);
    const label = $('label[for="upload"]');
    label.classList.add("busy");
    try {
      const added = await call("POST", "datasets", body);
      toast(t("uploaded", { name: added.name }));
      await refreshDatasets(added.name);
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      $("#form-problems").replaceChildren(problemNotice(error.problems));
      $("#form-problems").scrollIntoView({ block: "center" });
    } finally { label.classList.remove("busy"); }
  }
}

$("#upload").addEventListener("change", (event) => { upload([...event.target.files]); event.target.value = ""; });
let inside = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carriesFiles(event)) { inside += 1; document.body.classList.add("dropping"); } });
addEventListener("dragleave", (event) => { if (carriesFiles(event)) { inside -= 1; if (inside <= 0) document.body.classList.remove("dropping"); } });
addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dropping");
  upload([...event.dataTransfer.files]);
});
let away = 0;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) away = Date.now();
  else if (away && Date.now() - away > 1500) refreshDatasets().catch((error) => { if (!(error instanceof CallError)) throw error; });
});

// ---------------------------------------------------------------- no model yet
$("#get-starter")?.addEventListener("click", async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  button.classList.add("busy");
  const bar = $("#starter-progress");
  bar.hidden = false;
  try {
    let model = await call("POST", "models", { source: "starter" });
    toast(t("adding"));
    while (model.status === "adding") {
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
      model = await call("GET", `models/${encodeURIComponent(model.id)}`);
      if (Number.isFinite(model.progress)) bar.value = model.progress;
    }
    if (model.problem) throw new CallError(500, [model.problem]);
    location.reload();
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    $("#no-model").after(problemNotice(error.problems));
    button.disabled = false;
    button.classList.remove("busy");
    bar.hidden = true;
  }
});

if (!form.dataset.from && !new URLSearchParams(location.search).has("dataset") && !new URLSearchParams(location.search).has("model")) recall();
follow();
plan();
