// A line chart on a canvas: drawn in an animation frame, min and max per pixel column, so that 100,000 points stay quick.
// Linear or logarithmic, a crosshair by pointer or arrow keys, colours from the theme's tokens. Knows nothing of runs.

import { number, short } from "./kit.js";

const FONT = "12px system-ui, sans-serif";
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3], [1, 4], [12, 4]];

/** Nice round steps for an axis from `low` to `high` with about `count` of them. */
export function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

/** The same for a logarithmic axis: 1, 2 and 5 of each power of ten, or only powers where there are many. */
export function logTicks(low, high) {
  const found = [];
  const factors = Math.log10(high / low) > 2.5 ? [1] : [1, 1.5, 2, 3, 5, 7];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length >= 2 ? found : ticks(low, high, 4);
}

/** Index of the x nearest to `x` in the sorted `xs`, -1 when empty. */
export function nearest(xs, x) {
  let low = 0;
  let high = xs.length - 1;
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
}

/**
 * new Chart(canvas, { mini, format, empty, onRead }). `series` is a list of
 * { xs, ys, color: "--token", width, dash: index, dots: bool, faint: bool (left out of the range when it is noisy), mark: index of a marked point }.
 * `onRead(x)` is called with the x under the crosshair (null when it leaves) and returns the sentence for screen readers.
 */
export class Chart {
  constructor(canvas, { mini = false, format = (value) => short(value), empty = "", onRead } = {}) {
    Object.assign(this, { canvas, mini, format, empty, onRead, series: [], log: false, cross: null, frame: 0, hidden: new Set() });
    this.draw = this.draw.bind(this);
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(canvas);
    this.onTheme = () => this.redraw();
    window.addEventListener("afina:theme", this.onTheme);
    if (mini) canvas.setAttribute("role", "img");
    else this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "slider");
    canvas.setAttribute("aria-valuenow", "0");
    const point = (event) => { if (this.scale) this.read(this.scale.left(event.offsetX)); };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointerleave", () => this.read(null));
    canvas.addEventListener("blur", () => this.read(null));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const xs = this.grid();
    if (!xs.length) return;
    const now = this.cross === null ? xs.length - 1 : nearest(xs, this.cross);
    const far = Math.max(1, Math.round(xs.length / 10));
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, ArrowDown: now - 1, ArrowUp: now + 1, PageUp: now + far, PageDown: now - far, Home: 0, End: xs.length - 1 };
    if (event.key === "Escape") this.read(null);
    else if (event.key in moves) this.read(xs[Math.min(xs.length - 1, Math.max(0, moves[event.key]))]);
    else return;
    event.preventDefault();
  }

  /** The x values the crosshair stops at: those of the longest series. */
  grid() {
    return this.series.reduce((longest, one) => (one.xs.length > longest.length ? one.xs : longest), []);
  }

  read(x) {
    const xs = this.grid();
    const at = x === null || !xs.length ? null : xs[nearest(xs, x)];
    if (at === this.cross && at !== null) return;
    this.cross = at;
    const said = this.onRead?.(at);
    if (at !== null) {
      this.canvas.setAttribute("aria-valuemin", xs[0]);
      this.canvas.setAttribute("aria-valuemax", xs.at(-1));
      this.canvas.setAttribute("aria-valuenow", at);
      if (said) this.canvas.setAttribute("aria-valuetext", said);
    }
    this.redraw();
  }

  show(series) {
    this.series = series;
    this.redraw();
  }

  setLog(log) {
    this.log = log;
    this.redraw();
  }

  redraw() {
    if (!this.frame) this.frame = requestAnimationFrame(this.draw);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    window.removeEventListener("afina:theme", this.onTheme);
  }

  /** Lowest and highest y to show. Single wild steps of a faint series do not flatten the others. */
  range() {
    let low = Infinity;
    let high = -Infinity;
    for (const one of this.series) {
      let ys = one.ys.filter((y) => Number.isFinite(y) && (!this.log || y > 0));
      if (one.faint && ys.length > 40) {
        ys.sort((a, b) => a - b);
        ys = [ys[Math.floor(ys.length * 0.01)], ys[Math.floor(ys.length * 0.98)]];
      }
      for (const y of ys) { if (y < low) low = y; if (y > high) high = y; }
    }
    if (low > high) return null;
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
    if (this.log) return [Math.max(low / 1.05, 1e-12), high * 1.05];
    const pad = (high - low) * 0.06;
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  }

  draw() {
    this.frame = 0;
    const { canvas } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    const ratio = Math.min(3, window.devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const ink = canvas.getContext("2d");
    ink.setTransform(ratio, 0, 0, ratio, 0, 0);
    ink.clearRect(0, 0, width, height);
    ink.font = FONT;
    const style = getComputedStyle(canvas);
    this.color = (token) => style.getPropertyValue(token).trim();
    const range = this.range();
    if (!range) { this.drawEmpty(ink, width, height); return; }
    this.scale = this.measure(ink, width, height, range);
    this.drawAxes(ink, this.scale);
    ink.save();
    ink.beginPath();
    ink.rect(this.scale.x0 - 7, 0, this.scale.x1 - this.scale.x0 + 15, this.scale.y0 + 1);
    ink.clip();
    for (const one of this.series) this.drawSeries(ink, this.scale, one);
    ink.restore();
    if (this.cross !== null) this.drawCross(ink, this.scale);
  }

  drawEmpty(ink, width, height) {
    this.scale = null;
    ink.strokeStyle = this.color("--grid");
    ink.lineWidth = 1;
    for (let line = 0; line <= 4; line += 1) {
      const y = Math.round(8 + (height - 32) * (line / 4)) + 0.5;
      ink.beginPath();
      ink.moveTo(0, y);
      ink.lineTo(width, y);
      ink.stroke();
    }
    if (!this.empty) return;
    ink.fillStyle = this.color("--muted");
    ink.textAlign = "center";
    ink.fillText(this.empty, width / 2, height / 2);
  }

  measure(ink, width, height, [low, high]) {
    const xs = this.grid();
    const first = Math.min(...this.series.filter((one) => one.xs.length).map((one) => one.xs[0]));
    const last = Math.max(this.until ?? 0, ...this.series.filter((one) => one.xs.length).map((one) => one.xs.at(-1)), first + 1);
    const marks = this.log ? logTicks(low, high) : ticks(low, high, this.mini ? 2 : Math.max(2, Math.floor(height / 42)));
    const labels = marks.map((value) => this.format(value));
    const x0 = this.mini ? 1 : Math.ceil(Math.max(...labels.map((label) => ink.measureText(label).width))) + 10;
    const x1 = width - 8;
    const y0 = height - (this.mini ? 6 : 24);
    const y1 = 8;
    const place = this.log ? Math.log : (value) => value;
    const [bottom, top] = [place(low), place(high)];
    return {
      width, height, x0, x1, y0, y1, marks, labels, first, last, xs,
      x: (value) => x0 + ((value - first) / (last - first)) * (x1 - x0),
      y: (value) => y0 - ((place(value) - bottom) / (top - bottom)) * (y0 - y1),
      left: (pixel) => first + ((pixel - x0) / (x1 - x0)) * (last - first),
    };
  }

  drawAxes(ink, scale) {
    ink.lineWidth = 1;
    ink.strokeStyle = this.color("--grid");
    ink.fillStyle = this.color("--axis");
    ink.textAlign = "right";
    ink.textBaseline = "middle";
    let above = Infinity;
    scale.marks.forEach((value, index) => {
      const y = Math.round(scale.y(value)) + 0.5;
      if (above - y < 16) return;
      above = y;
      ink.beginPath();
      ink.moveTo(scale.x0, y);
      ink.lineTo(scale.x1, y);
      ink.stroke();
      if (!this.mini) ink.fillText(scale.labels[index], scale.x0 - 8, y);
    });
    if (this.mini) return;
    ink.textBaseline = "alphabetic";
    for (const value of ticks(scale.first, scale.last, Math.max(2, Math.floor(scale.width / 96)))) {
      if (!Number.isInteger(value)) continue;
      const x = scale.x(value);
      const label = number(value);
      const half = ink.measureText(label).width / 2;
      ink.textAlign = "center";
      ink.fillText(label, Math.min(scale.width - half, Math.max(half, x)), scale.height - 6);
    }
  }

  drawSeries(ink, scale, one) {
    ink.strokeStyle = this.color(one.color);
    ink.fillStyle = ink.strokeStyle;
    ink.lineWidth = one.width ?? 2;
    ink.lineJoin = "round";
    ink.setLineDash(DASHES[(one.dash ?? 0) % DASHES.length]);
    ink.beginPath();
    const dense = one.xs.length > (scale.x1 - scale.x0) * 2;
    if (dense) this.traceColumns(ink, scale, one);
    else {
      let down = false;
      for (let i = 0; i < one.xs.length; i += 1) {
        if (!Number.isFinite(one.ys[i]) || (this.log && one.ys[i] <= 0)) { down = false; continue; }
        if (down) ink.lineTo(scale.x(one.xs[i]), scale.y(one.ys[i]));
        else ink.moveTo(scale.x(one.xs[i]), scale.y(one.ys[i]));
        down = true;
      }
    }
    ink.stroke();
    ink.setLineDash([]);
    if (one.dots && one.xs.length < 200) {
      for (let i = 0; i < one.xs.length; i += 1) this.dot(ink, scale.x(one.xs[i]), scale.y(one.ys[i]), 3);
    } else if (one.xs.length === 1) this.dot(ink, scale.x(one.xs[0]), scale.y(one.ys[0]), 3);
    if (one.mark >= 0 && one.mark < one.xs.length) {
      ink.lineWidth = 2;
      ink.beginPath();
      ink.arc(scale.x(one.xs[one.mark]), scale.y(one.ys[one.mark]), 7, 0, 7);
      ink.stroke();
    }
  }

  /** One vertical stroke per pixel column from its lowest to its highest value. */
  traceColumns(ink, scale, one) {
    let column = null;
    let low = 0;
    let high = 0;
    for (let i = 0; i < one.xs.length; i += 1) {
      if (!Number.isFinite(one.ys[i]) || (this.log && one.ys[i] <= 0)) continue;
      const x = Math.round(scale.x(one.xs[i]));
      const y = scale.y(one.ys[i]);
      if (x !== column) {
        if (column === null) ink.moveTo(x, y);
        else { ink.lineTo(column, low); ink.lineTo(column, high); ink.lineTo(x, y); }
        column = x;
        low = y;
        high = y;
      } else { low = Math.min(low, y); high = Math.max(high, y); }
    }
    if (column !== null) { ink.lineTo(column, low); ink.lineTo(column, high); }
  }

  dot(ink, x, y, radius) {
    ink.beginPath();
    ink.arc(x, y, radius, 0, 7);
    ink.fill();
  }

  drawCross(ink, scale) {
    const x = Math.round(scale.x(this.cross)) + 0.5;
    ink.strokeStyle = this.color("--line-strong");
    ink.lineWidth = 1;
    ink.beginPath();
    ink.moveTo(x, scale.y1);
    ink.lineTo(x, scale.y0);
    ink.stroke();
    for (const one of this.series) {
      const at = nearest(one.xs, this.cross);
      if (at < 0 || one.faint || !Number.isFinite(one.ys[at]) || this.cross < one.xs[0] || this.cross > one.xs.at(-1)) continue;
      if (one.dots && one.xs[at] !== this.cross) continue;
      ink.fillStyle = this.color("--surface");
      this.dot(ink, scale.x(one.xs[at]), scale.y(one.ys[at]), 5);
      ink.fillStyle = this.color(one.color);
      this.dot(ink, scale.x(one.xs[at]), scale.y(one.ys[at]), 3.5);
    }
  }
}

/** An exponential mean that starts without bias; the window grows with the number of points. */
export function smooth(ys) {
  const keep = 1 - 1 / Math.max(2, Math.min(60, ys.length / 6));
  let mean = 0;
  let weight = 0;
  return ys.map((y) => {
    if (Number.isFinite(y)) { mean = keep * mean + (1 - keep) * y; weight = keep * weight + 1 - keep; }
    return weight ? mean / weight : NaN;
  });
}
