// The panel of one run: draws what the run's events say, and follows them. Used by the Training page and by a run's own
// page, so that a reload, a second tab, a lost connection and a restarted server all show the same truth.

import { $, $$, bytes, call, duration, el, icon, loss, number, problemNotice, short, t, toast, write } from "./kit.js";
import { follow } from "./live.js";
import { askStop } from "./frame.js";
import { Chart, nearest, smooth } from "./chart.js";

const ACTIVE = new Set(["queued", "starting", "running", "stopping"]);
const LOOKS = { queued: "wait", starting: "run", running: "run", stopping: "run", succeeded: "ok", stopped: "wait", failed: "bad" };
const CONSOLE_NODES = 200;
const TABLE_ROWS = 200;

/** A status in words, as the server's macro draws it. */
export function statusBadge(status) {
  return el("span", { class: `badge ${LOOKS[status]}`, dataset: { status } }, t(status));
}

/** What the events of a run amount to: plain arrays, ready to draw. Knows nothing of the page. */
export class History {
  constructor() {
    this.steps = { x: [], loss: [], rate: [], speed: [], memory: [], left: [], epoch: [] };
    this.evals = { x: [], loss: [] };
    Object.assign(this, { total: null, phase: null, before: null, now: null, advice: null, notes: [], end: null, preflight: null, best: -1 });
  }

  add(event) {
    const take = { step: this.step, eval: this.eval, sample: this.sample }[event.type];
    if (take) take.call(this, event);
    else if (event.type === "phase") this.phase = event;
    else if (event.type === "preflight") { this.preflight = event; this.total = event.total_steps; } else if (event.type === "advice") this.advice = event;
    else if (event.type === "warning" || event.type === "retry") this.notes.push(event);
    else if (["finished", "stopped", "failed"].includes(event.type)) this.end = event;
    if (event.type === "phase") this.end = null;
  }

  /** After a restart from a checkpoint, steps come again: what stood after them no longer holds. */
  static cut(lists, step) {
    const keys = Object.keys(lists);
    while (lists.x.length && lists.x.at(-1) >= step) for (const key of keys) lists[key].pop();
  }

  step(event) {
    History.cut(this.steps, event.step);
    const { steps } = this;
    steps.x.push(event.step);
    steps.loss.push(event.loss);
    steps.rate.push(event.learning_rate);
    steps.speed.push(event.tokens_per_second);
    steps.memory.push(event.memory);
    steps.left.push(event.seconds_left);
    steps.epoch.push(event.epoch);
    this.total = event.total_steps;
  }

  eval(event) {
    History.cut(this.evals, event.step);
    this.evals.x.push(event.step);
    this.evals.loss.push(event.loss);
    this.best = this.evals.loss.reduce((best, value, at) => (best < 0 || value < this.evals.loss[best] ? at : best), -1);
  }

  sample(event) {
    if (event.when === "before") this.before = event;
    else this.now = event;
  }
}

export class RunPanel {
  /** `root` is the panel's element, `info` the RunInfo; `titled` lets the page's title show the progress. */
  constructor(root, info, { titled = true } = {}) {
    this.root = root;
    this.info = info;
    this.history = new History();
    this.plainTitle = document.title;
    this.titled = titled;
    this.frame = 0;
    this.line = "";
    root.hidden = false;
    this.charts();
    this.buttons();
    this.draw();
    this.console = this.part("console");
    this.console.replaceChildren(el("div", {}, t("console.empty")));
    this.silent = true;
    this.live = follow(info.id, {
      events: (events) => { for (const event of events) this.history.add(event); this.later(); },
      console: (text) => this.print(text),
      run: (run) => { this.info = run; this.later(); },
    });
  }

  destroy() {
    this.live.close();
    for (const chart of [this.lossChart, this.rateChart, this.speedChart, this.memoryChart]) chart.destroy();
    cancelAnimationFrame(this.frame);
    if (this.titled) document.title = this.plainTitle;
  }

  part(name) { return $(`[data-part="${name}"]`, this.root); }

  later() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.draw(); });
  }

  charts() {
    const reading = (x) => this.reading(x);
    this.lossChart = new Chart(this.part("loss-chart"), { empty: t("chart.empty"), onRead: reading, format: (value) => short(value, 3) });
    this.rateChart = new Chart(this.part("rate-chart"), { mini: true });
    this.speedChart = new Chart(this.part("speed-chart"), { mini: true });
    this.memoryChart = new Chart(this.part("memory-chart"), { mini: true });
    for (const button of $$("button", this.part("scale"))) {
      button.addEventListener("click", () => {
        for (const other of $$("button", this.part("scale"))) other.setAttribute("aria-pressed", String(other === button));
        this.lossChart.setLog(button.value === "log");
      });
    }
    this.part("numbers").addEventListener("toggle", () => this.drawTable());
  }

  buttons() {
    this.part("stop").addEventListener("click", () => askStop(this.info.id));
    this.part("resume").addEventListener("click", async () => {
      try {
        this.info = await call("POST", `runs/${encodeURIComponent(this.info.id)}/resume`);
        toast(t("resumed"));
        this.later();
      } catch (error) { toast(error.message, true); }
    });
  }

  /** The values under the crosshair, as a sentence; shown beside the legend too. */
  reading(x) {
    const output = this.part("loss-reading");
    if (x === null) { write(output, ""); return ""; }
    const { steps, evals } = this.history;
    const parts = [t("step", { step: number(x) })];
    const at = nearest(steps.x, x);
    if (at >= 0 && steps.x[at] === x) parts.push(t("reading.train", { value: loss(this.smoothed[at]) }));
    const check = evals.x.indexOf(x);
    if (check >= 0) parts.push(t("reading.validation", { value: loss(evals.loss[check]) }));
    write(output, parts.join(" · "));
    return parts.join(", ");
  }

  draw() {
    const { info, history } = this;
    const { steps } = history;
    const active = ACTIVE.has(info.status);
    write(this.part("status"), "");
    this.part("status").replaceChildren(statusBadge(info.status));
    write($("#run-name", this.root), info.name);
    this.drawActions(active);
    this.drawProgress(active);
    this.drawMessages();
    this.smoothed = smooth(steps.loss);
    this.lossChart.until = history.total && active ? history.total : 0;
    this.lossChart.show([
      { xs: steps.x, ys: steps.loss, color: "--train-thin", width: 1, faint: true },
      { xs: steps.x, ys: this.smoothed, color: "--train", width: 2.5 },
      { xs: history.evals.x, ys: history.evals.loss, color: "--clay", width: 2, dash: 1, dots: true, mark: history.best },
    ]);
    this.rateChart.show([{ xs: steps.x, ys: steps.rate, color: "--train", width: 1.5 }]);
    this.speedChart.show([{ xs: steps.x, ys: steps.speed, color: "--train", width: 1.5, faint: true }]);
    this.memoryChart.show([{ xs: steps.x, ys: steps.memory, color: "--train", width: 1.5 }]);
    this.drawNumbers();
    this.drawAnswers();
    if (this.part("numbers").open) this.drawTable();
  }

  drawActions(active) {
    const { info } = this;
    this.part("stop").hidden = !active;
    this.part("stop").disabled = info.status === "stopping";
    this.part("resume").hidden = active || !info.resumable;
    const chat = this.part("chat");
    chat.hidden = active || !info.output;
    chat.href = `/chat?model=${encodeURIComponent(info.id)}&base=${encodeURIComponent(info.model)}`;
    const details = this.part("details");
    if (details) details.href = `/runs/${encodeURIComponent(info.id)}`;
  }

  drawProgress(active) {
    const { info, history } = this;
    const step = history.steps.x.at(-1) ?? info.step;
    const total = history.total ?? info.total_steps;
    const bar = this.part("bar");
    if (info.status === "succeeded") bar.value = 1;
    else if (total && (step || !active)) bar.value = Math.min(1, step / total);
    else if (active && info.status !== "queued") bar.removeAttribute("value");
    else bar.value = 0;
    write(this.part("doing"), this.doing(active, step, total));
    const left = history.steps.left.at(-1) ?? info.seconds_left;
    const wait = info.status === "queued" && info.queue_position ? t("place", { n: number(info.queue_position) }) : "";
    write(this.part("left"), active && info.status === "running" && Number.isFinite(left) ? t("left", { time: duration(left) }) : wait);
    if (this.titled) {
      const share = total ? `${number(Math.floor((100 * step) / total))} % · ` : "";
      document.title = active ? `${info.status === "running" ? share : ""}${info.name} · ${t(info.status)} · Afina` : this.plainTitle;
    }
  }

  /** One line in words: what the run is doing now, or how it ended. */
  doing(active, step, total) {
    const { info, history } = this;
    if (info.status === "succeeded") return t("done", { time: duration(info.seconds ?? history.end?.seconds) });
    if (info.status === "stopped") return t(`stopped.kept.${history.end?.kept ?? "last"}`);
    if (info.status === "failed") return total ? t("step.of", { step: number(step), total: number(total) }) : t("failed");
    const parts = [];
    const phase = history.phase?.name;
    if (info.status === "queued") parts.push(t("phase.queued"));
    else if (phase && phase !== "training") parts.push(t(`phase.${phase}`));
    else if (!step) parts.push(t(phase ? `phase.${phase}` : "phase.starting"));
    if (step && total) {
      parts.push(t("step.of", { step: number(step), total: number(total) }));
      const epoch = history.steps.epoch.at(-1) ?? info.epoch;
      if (Number.isFinite(epoch)) parts.push(t("epoch.of", { epoch: number(epoch, 1) }));
    }
    return parts.join(" · ");
  }

  drawMessages() {
    const { info, history } = this;
    const plan = history.preflight;
    this.part("measured").hidden = !plan?.measured;
    if (plan?.measured) {
      const words = { memory: bytes(plan.memory), step: number(plan.step_seconds, 1), time: duration(plan.seconds), cut: number(plan.cut_tokens) };
      write(this.part("measured"), t(plan.cut_tokens ? "measured.cut" : "measured", words));
    }
    const failure = this.part("failure");
    failure.hidden = info.status !== "failed" || !info.error;
    const key = `${info.error?.code}${info.error?.message}`;
    if (!failure.hidden && failure.dataset.key !== key) {
      failure.dataset.key = key;
      failure.replaceChildren(problemNotice([info.error], t("failed.title")));
    }
    const advice = this.part("advice");
    advice.hidden = !history.advice;
    if (history.advice) write(advice.lastElementChild, history.advice.message.text);
    const warnings = this.part("warnings");
    warnings.hidden = !history.notes.length;
    for (const note of history.notes.slice(warnings.childElementCount, 6)) {
      warnings.append(el("p", { class: "notice warn" }, icon("warn"), el("span", {}, note.message.text)));
    }
  }

  drawNumbers() {
    const { info, history } = this;
    const { steps, evals } = history;
    write(this.part("train-loss"), loss((info.ended ? info.train_loss : null) ?? this.smoothed.at(-1) ?? info.train_loss));
    write(this.part("validation-loss"), loss(evals.loss.at(-1) ?? info.validation_loss));
    const best = this.part("best");
    const has = history.best >= 0;
    best.replaceChildren(has ? loss(evals.loss[history.best]) : "–", ...(has ? [" ", el("small", {}, t("best.at", { step: number(evals.x[history.best]) }))] : []));
    write(this.part("seconds"), duration(info.seconds));
    write(this.part("rate"), steps.x.length ? short(steps.rate.at(-1), 3) : "");
    write(this.part("speed"), steps.x.length ? number(steps.speed.at(-1)) : "");
    write(this.part("memory"), steps.x.length ? bytes(steps.memory.at(-1)) : "");
  }

  drawAnswers() {
    const { before, now } = this.history;
    const latest = now ?? before;
    this.part("answers-card").hidden = !latest;
    if (!latest || latest === this.drawnAnswers) return;
    this.drawnAnswers = latest;
    write(this.part("answers-step"), now ? t("after.step", { step: number(now.step) }) : "");
    const said = (text) => text?.trim() || t("empty.answer");
    this.part("answers").replaceChildren(...latest.answers.map((answer, at) => {
      const earlier = before?.answers[at]?.prompt === answer.prompt ? before.answers[at] : before?.answers.find((one) => one.prompt === answer.prompt);
      return el("div", { class: "answer" }, el("p", { class: "prompt" }, answer.prompt),
        el("div", {}, el("span", { class: "label" }, t("before")), earlier ? said(earlier.answer) : "–"),
        el("div", { class: "now" }, el("span", { class: "label" }, t("now")), now ? said(answer.answer) : "…"),
        answer.expected ? el("p", { class: "expected small" }, t("expected", { text: answer.expected })) : null);
    }));
  }

  /** The chart's numbers for those who read rather than see: every validation, and steps thinned evenly between. */
  drawTable() {
    const { steps, evals } = this.history;
    const every = Math.ceil(steps.x.length / TABLE_ROWS);
    const rows = new Map();
    steps.x.forEach((x, i) => { if (i % every === 0 || i === steps.x.length - 1) rows.set(x, [this.smoothed[i], null, steps.rate[i], steps.speed[i]]); });
    evals.x.forEach((x, i) => {
      const at = steps.x.indexOf(x);
      const row = rows.get(x) ?? (at < 0 ? [null, null, null, null] : [this.smoothed[at], null, steps.rate[at], steps.speed[at]]);
      row[1] = evals.loss[i];
      rows.set(x, row);
    });
    const cell = (text) => el("td", { class: "num" }, text);
    $("tbody", this.part("numbers")).replaceChildren(...[...rows].sort((a, b) => a[0] - b[0]).map(([x, [train, check, rate, speed]]) => el("tr", {},
      cell(number(x)), cell(loss(train)), cell(loss(check)), cell(short(rate)), cell(number(speed)))));
  }

  /** Console text: whole lines as nodes, at most 200 of them, following the end unless the reader scrolled up. */
  print(text) {
    const box = this.console;
    if (this.silent) { box.replaceChildren(); this.silent = false; }
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    const lines = (this.line + text).split("\n");
    this.line = lines.pop();
    const nodes = lines.slice(-CONSOLE_NODES).map((line) => el("div", {}, line.slice(line.lastIndexOf("\r", line.length - 2) + 1)));
    box.append(...nodes);
    while (box.childElementCount > CONSOLE_NODES) box.firstElementChild.remove();
    if (follows) box.scrollTop = box.scrollHeight;
  }
}
