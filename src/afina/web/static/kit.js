// What every page uses: words in the page's language, numbers in its locale, elements, and calls to the API.
// Knows nothing of runs or of any page. Words come from <script type="application/json" class="words"> blocks.

const LANGUAGE = document.documentElement.lang || "en";
const LOCALES = [LANGUAGE, "pt"];
const WORDS = Object.assign({}, ...[...document.querySelectorAll("script.words")].map((block) => JSON.parse(block.textContent)));

/** The sentence for `key` with {placeholders} filled in. A missing key shows itself, so that tests see it. */
export function t(key, values = {}) {
  return (WORDS[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

const formats = new Map();
function format(options) {
  const key = JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(LOCALES, options));
  return formats.get(key);
}

/** A number with at most `digits` decimals; "–" for null and what is not finite. */
export function number(value, digits = 0) {
  return Number.isFinite(value) ? format({ maximumFractionDigits: digits }).format(value) : "–";
}

/** A loss: always three decimals, so that columns line up. */
export function loss(value) {
  return Number.isFinite(value) ? format({ minimumFractionDigits: 3, maximumFractionDigits: 3 }).format(value) : "–";
}

/** A number with `digits` significant digits: learning rates, axis labels. */
export function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-7 || size >= 1e7)) return format({ notation: "scientific", maximumFractionDigits: 1 }).format(value);
  return format({ maximumSignificantDigits: digits }).format(value);
}

/** "42 %" */
export function percent(value, digits = 0) {
  return Number.isFinite(value) ? format({ style: "percent", maximumFractionDigits: digits }).format(value) : "–";
}

/** Bytes as "269 MB" or "1.4 GB" (powers of ten). */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 999.5 && power < units.length - 1) { value /= 1000; power += 1; }
  const digits = power && value < 99.95 ? 1 : 0;
  return `${format({ minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value)} ${units[power]}`;
}

/** Seconds as "2 min 10 s"; the two largest units that matter. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const parts = [["d", Math.floor(whole / 86400)], ["h", Math.floor(whole / 3600) % 24], ["min", Math.floor(whole / 60) % 60], ["s", whole % 60]];
  const first = parts.findIndex(([, n]) => n > 0);
  if (first < 0) return t("unit.s", { n: number(seconds < 1 ? seconds : 0, 1) });
  return parts.slice(first, first + 2).filter(([, n], i) => i === 0 || n > 0).map(([unit, n]) => t(`unit.${unit}`, { n: number(n) })).join(" ");
}

/** Compare texts in the reader's alphabet, numbers inside them by value. */
export const collate = new Intl.Collator(LOCALES, { numeric: true }).compare;

/** One element, found or null. */
export const $ = (selector, root = document) => root.querySelector(selector);
/** All elements as an array. */
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Build an element: el("p", { class: "muted", onclick }, "text", child, …). Text is always text, never HTML. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An icon of the sprite. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Write `text` only when it differs, so that live regions and selections stay quiet. */
export function write(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}

/** Data that the server put into the page: <script type="application/json" id="…">. */
export function data(id) {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
}

/** A failed call: `problems` is a list of {code, field, value, message, remedy}, `status` the HTTP status (0: no answer). */
export class CallError extends Error {
  constructor(status, problems) {
    super(problems[0].message);
    this.status = status;
    this.problems = problems;
  }
}

const TOKEN = $('meta[name="afina-token"]')?.content ?? "";

/** Headers for an unsafe request made with fetch directly. */
export const tokenHeader = () => ({ "X-Afina-Token": TOKEN });

/** Call the API: `path` under /api/v1, `body` an object (JSON) or FormData. Gives the answer's JSON; throws CallError. */
export async function call(method, path, body, options = {}) {
  const headers = { Accept: "application/json", ...tokenHeader() };
  const form = body instanceof FormData;
  if (body !== undefined && !form) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, { method, headers, body: body === undefined || form ? body : JSON.stringify(body), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(0, [{ code: "offline", message: t("error.offline") }]);
  }
  if (answer.status === 204) return null;
  let value;
  try {
    value = await answer.json();
  } catch {
    throw new CallError(answer.status, [{ code: `http_${answer.status}`, message: t("error.strange") }]);
  }
  if (answer.ok) return value;
  const problems = value?.error?.problems;
  throw new CallError(answer.status, problems?.length ? problems : [{ code: `http_${answer.status}`, message: value?.error?.message ?? t("error.strange") }]);
}

/** A notice with every problem, its remedy and its small code. `kind` is bad, warn or ok. */
export function problemNotice(problems, title = t("error.title"), kind = "bad") {
  return el("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : null, tabindex: "-1" }, icon(kind === "ok" ? "check" : kind),
    el("div", {}, el("strong", {}, title), el("ul", { class: "plain" }, problems.map((problem) => el("li", {},
      problem.field && document.getElementById(`f-${problem.field}`) ? el("a", { href: `#f-${problem.field}` }, problem.message) : problem.message,
      problem.remedy ? el("span", { class: "muted" }, ` ${problem.remedy}`) : null, " ", el("code", { class: "code" }, problem.code ?? ""))))));
}

/** Put a notice into `container` (emptied first) for a CallError or a list of problems. */
export function showProblems(container, error, title) {
  container.replaceChildren(problemNotice(error.problems ?? error, title));
}

/** A short message that goes away by itself. */
export function toast(text, bad = false) {
  const node = el("div", { class: bad ? "toast bad" : "toast" }, text);
  $("#toasts").append(node);
  setTimeout(() => node.remove(), bad ? 9000 : 4000);
}

/** Ask before something that cannot be undone. Resolves to true or false. */
export function confirmDialog({ title, text, action, danger = true }) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { class: "dialog", "aria-labelledby": "confirm-title" }, el("form", { method: "dialog" },
      el("h2", { id: "confirm-title" }, title), el("p", {}, text),
      el("div", { class: "row end" }, el("button", { class: "button quiet", value: "" }, t("cancel")),
        el("button", { class: danger ? "button danger" : "button primary", value: "yes" }, action))));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Small things remembered in this browser; forgetting is never an error (private windows refuse to store). */
export const memory = {
  get(key) { try { return JSON.parse(localStorage.getItem(`afina.${key}`)); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(`afina.${key}`, JSON.stringify(value)); } catch { /* storage is full or refused */ } },
  remove(key) { try { localStorage.removeItem(`afina.${key}`); } catch { /* as above */ } },
};

/** Call `action` once, `wait` milliseconds after the last call. */
export function settle(action, wait) {
  let timer = 0;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => action(...given), wait); };
}
