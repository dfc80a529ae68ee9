// Line charts of a training stage, drawn as SVG from the page's JSON. A pointer over one chart reads all charts of its stage.
"use strict";

const MARGIN = { top: 20, right: 14, bottom: 22, left: 48 };
const MAX_DOTS = 40; // a curve with more points than this is a line without dots
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);

function formatNumber(value) {
  const size = Math.abs(value);
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= scale) return trim((value / (suffix === "k" ? 1e3 : scale)).toPrecision(4)) + suffix;
  }
  return size !== 0 && size < 1e-3 ? value.toExponential(2).replace(/\.?0*e-/, "e−") : trim(value.toPrecision(4));
}

function formatTime(seconds) {
  const whole = Math.round(seconds);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(0, units.findIndex(([, length]) => whole >= length));
  if (whole === 0) return "0 s";
  const [name, length] = units[at];
  const rest = units[at + 1] ? Math.floor((whole % length) / units[at + 1][1]) : 0;
  return `${Math.floor(whole / length)} ${name}` + (rest ? ` ${rest} ${units[at + 1][0]}` : "");
}

const formats = { steps: (v) => Math.round(v).toLocaleString("en"), tokens: formatNumber, time: formatTime };

/** The place of the last entry of an ascending list that is not above `value`; 0 when all are. */
function lastNotAbove(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Read the broken line through (from, to) at `value`, flat beyond its ends. */
function interpolate(from, to, value) {
  const i = lastNotAbove(from, value);
  if (i + 1 >= from.length || value <= from[i]) return to[i];
  return to[i] + ((to[i + 1] - to[i]) * (value - from[i])) / (from[i + 1] - from[i]);
}

function linearTicks(low, high, about, time = false) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = (time && TIME_STEPS.find((s) => s >= raw)) || [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step || 0); // never −0;
  return ticks;
}

function logTicks(low, high, about) {
  const decades = Math.log10(high / low);
  const marks = decades > 3 ? [1] : [1, 2, 5];
  const every = Math.max(1, Math.ceil(decades / about));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % every === 0) ticks.push(...marks.map((mark) => mark * 10 ** power).filter((t) => t >= low && t <= high));
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, about);
}

function element(parent, name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

class Plot {
  /** @param figure its <figure>  @param chart its curves and rules  @param stage what the charts of the stage share */
  constructor(figure, chart, stage) {
    Object.assign(this, { figure, chart, stage, axis: "steps" });
    this.box = figure.querySelector(".plot");
    this.cursor = figure.querySelector(".cursor");
    this.toggles = [...figure.querySelectorAll(".legend button")];
    this.logButton = figure.querySelector(".log");
    const values = [...chart.curves.flatMap((c) => c.values), ...chart.rules.map((r) => r.value)].filter((v) => v !== null);
    this.canLog = values.every((v) => v >= 0) && values.some((v) => v > 0);
    this.log = chart.log && this.canLog;
    this.logButton.hidden = !this.canLog;
    this.logButton.addEventListener("click", () => {
      this.log = !this.log;
      this.logButton.setAttribute("aria-pressed", this.log);
      this.draw();
    });
    for (const toggle of this.toggles) {
      toggle.addEventListener("click", () => {
        toggle.setAttribute("aria-pressed", toggle.getAttribute("aria-pressed") !== "true");
        this.draw();
      });
    }
    this.box.addEventListener("pointermove", (event) => this.stage.point(this.stepAt(event)));
    this.box.addEventListener("pointerleave", () => this.stage.point(null));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  visible() {
    return this.chart.curves.filter((_, i) => this.toggles[i].getAttribute("aria-pressed") === "true");
  }

  place(step) {
    return this.axis === "steps" ? step : interpolate(this.stage.axes.steps, this.stage.axes[this.axis], step);
  }

  stepAt(event) {
    const { left } = this.box.getBoundingClientRect();
    const place = this.x.invert(event.clientX - left);
    const { axes } = this.stage;
    const step = this.axis === "steps" ? place : interpolate(axes[this.axis], axes.steps, place);
    return Math.min(Math.max(step, axes.steps[0]), axes.steps.at(-1));
  }

  scales(width, height) {
    const { axes } = this.stage;
    const [first, last] = [axes[this.axis][0], axes[this.axis].at(-1)];
    const right = width - MARGIN.right;
    const perUnit = (right - MARGIN.left) / (last - first || 1);
    this.x = (value) => MARGIN.left + (value - first) * perUnit;
    this.x.invert = (pixel) => first + (pixel - MARGIN.left) / perUnit;

    const ends = (c) => c.margins.flatMap((m, i) => (c.values[i] === null ? [] : [c.values[i] - m, c.values[i] + m]));
    const shown = [...this.visible().flatMap((c) => [...c.values, ...ends(c)]), ...this.chart.rules.map((r) => r.value)];
    const values = shown.filter((v) => v !== null && (!this.log || v > 0));
    let low = values.reduce((a, b) => Math.min(a, b), Infinity);
    let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!values.length) [low, high] = [1, 2];
    if (this.chart.from_zero && !this.log) [low, high] = [Math.min(0, low), Math.max(0, high)];
    const scale = this.log ? Math.log : (v) => v;
    const back = this.log ? Math.exp : (v) => v;
    let [from, to] = [scale(low), scale(high)];
    const air = (to - from) * 0.05 || (this.log ? 0.1 : Math.abs(to) * 0.05 || 1); // a curve that never moves needs a range too
    from -= this.chart.from_zero && !this.log && low === 0 ? 0 : air;
    to += air;
    const bottom = height - MARGIN.bottom;
    this.y = (value) => bottom - ((scale(value) - from) * (bottom - MARGIN.top)) / (to - from);
    return { first, last, low: back(from), high: back(to) };
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!width) return;
    const range = this.scales(width, height);
    const svg = element(document.createDocumentFragment(), "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.chart.title });
    this.drawPhases(svg, height);
    this.drawAxes(svg, range, width, height);
    for (const curve of this.visible()) if (curve.margins.length) this.drawInterval(svg, curve);
    for (const curve of this.visible().reverse()) this.drawCurve(svg, curve);
    this.drawRules(svg, width, height);
    this.marks = element(svg, "g", {});
    this.box.replaceChildren(svg);
  }

  drawPhases(svg, height) {
    const { phases, axes } = this.stage;
    if (phases.length < 2) return;
    phases.forEach((phase, i) => {
      const begin = this.x(this.place(i ? phase.first : axes.steps[0]));
      const end = this.x(this.place(i + 1 < phases.length ? phases[i + 1].first : axes.steps.at(-1)));
      if (i % 2) element(svg, "rect", { class: "band", x: begin, y: 0, width: end - begin, height: height - MARGIN.bottom });
      if (end - begin > 6.5 * phase.name.length + 10) element(svg, "text", { x: begin + 6, y: 13 }, phase.name);
    });
  }

  drawAxes(svg, { first, last, low, high }, width, height) {
    const rows = Math.max(2, Math.round(height / 55));
    for (const tick of this.log ? logTicks(low, high, rows) : linearTicks(low, high, rows)) {
      const y = this.y(tick);
      element(svg, "line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y });
      element(svg, "text", { x: MARGIN.left - 8, y: y + 4, "text-anchor": "end" }, formatNumber(tick));
    }
    if (last === first) return;
    for (const tick of linearTicks(first, last, Math.max(2, Math.round(width / 110)), this.axis === "time")) {
      const x = this.x(tick);
      const anchor = x > width - 34 ? "end" : "middle";
      element(svg, "text", { x: anchor === "end" ? width : x, y: height - 4, "text-anchor": anchor }, formats[this.axis](tick));
    }
  }

  /** The interval round a curve, as a band. */
  drawInterval(svg, { steps, values, margins, color }) {
    const known = steps.map((_, i) => i).filter((i) => values[i] !== null && (!this.log || values[i] > margins[i]));
    const edge = (i, sign) => `${this.x(this.place(steps[i])).toFixed(1)} ${this.y(values[i] + sign * margins[i]).toFixed(1)}`;
    const around = [...known.map((i) => edge(i, 1)), ...known.reverse().map((i) => edge(i, -1))];
    if (around.length) element(svg, "path", { class: "interval", style: `--hue: var(--c${color % 8})`, d: `M${around.join("L")}Z` });
  }

  drawCurve(svg, { steps, values, color, faint }) {
    let path = "";
    let open = false;
    const points = [];
    values.forEach((value, i) => {
      if (value === null || (this.log && value <= 0)) {
        open = false;
        return;
      }
      const [x, y] = [this.x(this.place(steps[i])).toFixed(1), this.y(value).toFixed(1)];
      path += open ? `L${x} ${y}` : `M${x} ${y}h0`; // "h0" makes a dot of a point that stands alone between gaps
      open = true;
      points.push([x, y]);
    });
    const style = `--hue: var(--c${color % 8})`;
    element(svg, "path", { class: faint ? "curve faint" : "curve", style, d: path });
    if (points.length <= MAX_DOTS && !faint) for (const [cx, cy] of points) element(svg, "circle", { class: "dot", style, cx, cy, r: 3.5 });
  }

  drawRules(svg, width, height) {
    const right = width - MARGIN.right;
    let lowest = height - MARGIN.bottom - 2; // labels are set from below, each at least a line above the one before
    for (const rule of [...this.chart.rules].sort((a, b) => a.value - b.value)) {
      const y = this.y(rule.value);
      element(svg, "line", { class: "rule-line", x1: MARGIN.left, x2: right, y1: y, y2: y });
      if (width < 480) continue; // the legend names it, too
      const baseline = Math.min(y - 5, lowest);
      lowest = baseline - 14;
      element(svg, "text", { class: "rule-name", x: MARGIN.left + 6, y: baseline }, `${rule.name} ${formatNumber(rule.value)}`);
    }
  }

  /** Read all curves at a step, or at their ends when the pointer has left. */
  point(step) {
    this.marks.replaceChildren();
    this.cursor.textContent = step === null ? "" : this.stage.describe(step);
    if (step !== null) {
      const x = this.x(this.place(step));
      element(this.marks, "line", { class: "crosshair", x1: x, x2: x, y1: MARGIN.top, y2: this.box.clientHeight - MARGIN.bottom });
    }
    const visible = new Set(this.visible());
    this.chart.curves.forEach((curve, i) => {
      const at = step === null ? curve.values.findLastIndex((v) => v !== null) : this.nearest(curve.steps, step);
      const value = curve.values[at] ?? null;
      this.toggles[i].querySelector("output").textContent = value === null ? "–" : formatNumber(value);
      if (step === null || value === null || !visible.has(curve) || (this.log && value <= 0)) return;
      const [cx, cy] = [this.x(this.place(curve.steps[at])), this.y(value)];
      element(this.marks, "circle", { class: "dot", style: `--hue: var(--c${curve.color % 8})`, cx, cy, r: curve.faint ? 3 : 4.5 });
    });
  }

  nearest(steps, step) {
    const i = lastNotAbove(steps, step);
    return i + 1 < steps.length && steps[i + 1] - step < step - steps[i] ? i + 1 : i;
  }
}
