// A conversation with one or two models, without the page: who said what, what each model is told, and the stream of an answer.

import { CallError, t, tokenHeader } from "./kit.js";

const KEY = "afina.chat";

/**
 * `columns`: ids of the models being asked (one or two). `turns`: {prompt, answers: [{model, text, …}]}, where an answer also
 * has stop_reason, tokens, tokens_per_second, precision, or problems when it failed. Each model only knows its own answers.
 */
export class Conversation {
  constructor() { Object.assign(this, { columns: [], turns: [] }); }

  /** What is sent for `model` when the turn at `index` is asked: system prompt, its own earlier turns, the question. */
  messages(model, index, system) {
    const told = system.trim() ? [{ role: "system", content: system.trim() }] : [];
    for (const turn of this.turns.slice(0, index)) {
      const own = turn.answers.find((answer) => answer.model === model && answer.text);
      if (own) told.push({ role: "user", content: turn.prompt }, { role: "assistant", content: own.text });
    }
    return [...told, { role: "user", content: this.turns[index].prompt }];
  }

  /** Whether `model` meets this conversation for the first time at `index` although others have spoken before. */
  fresh(model, index) {
    const before = this.turns.slice(0, index).flatMap((turn) => turn.answers);
    return before.some((answer) => answer.text) && !before.some((answer) => answer.model === model);
  }

  /** Whether `model` has answered anything here. */
  knows(model) { return this.turns.some((turn) => turn.answers.some((answer) => answer.model === model)); }

  save() {
    try { sessionStorage.setItem(KEY, JSON.stringify({ columns: this.columns, turns: this.turns })); } catch { /* full or refused */ }
  }

  /** What this tab had before a reload; an answer that was cut off by it says so. */
  restore() {
    let kept;
    try { kept = JSON.parse(sessionStorage.getItem(KEY)); } catch { kept = null; }
    if (!Array.isArray(kept?.turns) || !Array.isArray(kept.columns)) return;
    Object.assign(this, { columns: kept.columns, turns: kept.turns });
    for (const answer of this.turns.flatMap((turn) => turn.answers)) {
      if (!answer.stop_reason && !answer.problems) answer.stop_reason = "broken";
    }
  }
}

/** Whole lines of a stream of bytes, each parsed as JSON. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
    if (done) return;
  }
}

function problemsOf(answer, status) {
  const problems = answer?.error?.problems ?? (answer?.error?.message ? [answer.error] : null);
  return problems?.length ? problems : [{ code: `http_${status}`, message: t("error.strange") }];
}

/**
 * Ask a model. `on.phase("loading" | "reading")` and `on.text(piece)` are called as it goes; resolves to the last line,
 * {stop_reason, tokens, tokens_per_second, precision}. Throws CallError; AbortError when `signal` ended it.
 */
export async function ask(model, messages, settings, signal, on) {
  const body = JSON.stringify({ model, messages, temperature: settings.temperature, top_p: settings.top_p, max_tokens: settings.max_tokens, precision: settings.precision });
  const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson, application/json", ...tokenHeader() };
  let answer;
  try {
    answer = await fetch("/api/v1/chat", { method: "POST", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, [{ code: "offline", message: t("error.offline") }]);
  }
  if (!answer.ok) throw new CallError(answer.status, problemsOf(await answer.json().catch(() => null), answer.status));
  try {
    for await (const line of lines(answer.body)) {
      if (line.error) throw new CallError(200, problemsOf(line, 200));
      if (line.done) return line;
      if (line.text) on.text(line.text);
      else if (line.phase || line.loading || line.ready) on.phase(line.loading || line.phase === "loading" ? "loading" : "reading");
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof CallError) throw error;
  }
  return { stop_reason: "broken" };
}
