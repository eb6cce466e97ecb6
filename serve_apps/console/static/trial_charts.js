// Charts of a sweep as SVG: parallel coordinates, Pareto front, the search over time, a trial's curve. Each returns an element; colours come from the style sheet.
// (plotly.js draws parallel coordinates with WebGL and functions made from text, which the page's content security policy refuses.)

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function chart(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, class: "trial-chart" });
}

function text(x, y, content, attributes = {}) {
  return svg("text", { x, y, ...attributes }, content);
}

// From low..high to start..end; `log` by order of magnitude. Where low equals high all lie in the middle.
function scale(low, high, start, end, log = false) {
  const as = log ? Math.log : (value) => value;
  const wide = as(high) - as(low);
  const place = (value) => (wide === 0 ? (start + end) / 2 : start + ((as(value) - as(low)) / wide) * (end - start));
  return Object.assign(place, { low, high, start, end });
}

function padded(values, share = 0.08) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) * 0.02 || 0.01) * share;
  return [low - room, high + room];
}

function ticks(low, high, count = 4, least = 0) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= Math.max(rough, least)) ?? least;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

export function short(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 0.001 && size < 1000 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

// How good a score is among all, 0 to 1, as one of eight steps of the colour ramp in the style sheet.
export function shade(value, low, high) {
  if (value == null) return "ramp-none";
  const share = high > low ? (value - low) / (high - low) : 1;
  return `ramp-${Math.min(7, Math.max(0, Math.floor(share * 8)))}`;
}

function frame(canvas, x, y, names, least = 0) {
  const horizontal = ticks(x.low, x.high, (x.end - x.start) / 90, least), vertical = ticks(y.low, y.high);
  for (const value of vertical.found) {
    canvas.append(svg("line", { x1: x.start, x2: x.end, y1: y(value), y2: y(value), class: "grid" }));
    canvas.append(text(x.start - 8, y(value) + 4, value.toFixed(vertical.digits), { "text-anchor": "end", class: "tick" }));
  }
  for (const value of horizontal.found) {
    canvas.append(text(x(value), y.start + 20, value.toFixed(horizontal.digits), { "text-anchor": "middle", class: "tick" }));
  }
  canvas.append(text((x.start + x.end) / 2, y.start + 40, names[0], { "text-anchor": "middle", class: "axis-name" }));
  canvas.append(text(14, (y.start + y.end) / 2, names[1], { "text-anchor": "middle", class: "axis-name", transform: `rotate(-90 14 ${(y.start + y.end) / 2})` }));
}

function empty(canvas, width, height, said) {
  canvas.append(text(width / 2, height / 2, said, { "text-anchor": "middle", class: "axis-name" }));
  return canvas;
}

// One line a trial over an axis a setting, the two scores last; `by` ("score" or "whole") decides the colour.
export function parallel(sweep, by, open, room) {
  const trials = sweep.trials.filter((trial) => trial.score != null);
  const axes = [...sweep.settings, { name: sweep.whole, of: "whole" }, { name: sweep.metric, of: "score" }];
  const width = Math.max(room, axes.length * 98 + 40), height = 340, top = 56, bottom = height - 26;
  const canvas = chart(width, height, `Parallel coordinates: ${trials.length} trials over ${sweep.settings.length} settings`);
  if (!trials.length) return empty(canvas, width, height, "no trial has a score yet");
  const step = (width - 130) / Math.max(1, axes.length - 1);
  const places = axes.map((axis, number) => place(axis, 60 + number * step, trials, top, bottom));
  const ranks = trials.map((trial) => trial[by]).filter((value) => value != null);
  const [low, high] = [Math.min(...ranks), Math.max(...ranks)];
  const lines = svg("g", { class: "lines" });
  for (const trial of [...trials].sort((a, b) => (a[by] ?? -1) - (b[by] ?? -1))) {
    const path = places.map(({ x, y }, number) => `${number ? "L" : "M"}${x.toFixed(1)},${y(trial).toFixed(1)}`).join("");
    const classes = ["trial-line", shade(trial[by], low, high), trial.number === sweep.best?.number ? "best" : "", trial.feasible || trial.status === "running" ? "" : "weak"];
    const line = svg("path", { d: path, class: classes.filter(Boolean).join(" "), "data-trial": trial.number });
    line.append(svg("title", {}, `trial ${trial.number}: ${trial.score.toFixed(4)} · ${trial.changes}`));
    line.addEventListener("click", () => open(trial.number));
    lines.append(line);
  }
  canvas.append(lines);
  places.forEach(({ x, marks }, number) => {
    canvas.append(svg("line", { x1: x, x2: x, y1: top, y2: bottom, class: "axis" }));
    const cut = axes[number].of ? -1 : axes[number].name.lastIndexOf(".");
    canvas.append(text(x, 18, axes[number].name.slice(0, Math.max(0, cut)), { "text-anchor": "middle", class: "axis-of" }));
    canvas.append(text(x, 34, axes[number].name.slice(cut + 1), { "text-anchor": "middle", class: "axis-name" }));
    for (const [at, said] of marks) canvas.append(text(x + 8, at + 4, said, { class: "tick halo" }));
  });
  return canvas;
}

function place(axis, x, trials, top, bottom) {
  if (axis.of) {
    const known = trials.map((trial) => trial[axis.of]).filter((value) => value != null);
    const to = scale(...padded(known.length ? known : [0, 1], 0), bottom, top);
    return { x, y: (trial) => to(trial[axis.of] ?? to.low), marks: [[top, to.high.toFixed(4)], [bottom, to.low.toFixed(4)]] };
  }
  if (axis.values) {
    const at = (word) => (axis.values.length < 2 ? (top + bottom) / 2 : bottom - (axis.values.indexOf(word) / (axis.values.length - 1)) * (bottom - top));
    return { x, y: (trial) => at(trial.point[axis.name]), marks: axis.values.map((word) => [at(word), word]) };
  }
  const to = scale(axis.low, axis.high, bottom, top, axis.log);
  return { x, y: (trial) => to(trial.numbers[axis.name] ?? axis.low), marks: [[top, short(axis.high)], [bottom, short(axis.low)]] };
}

// The metric against its fellow over all rows: every trial, the front, the constraint, the base.
export function front(sweep, open, width) {
  const height = Math.min(360, Math.max(260, width * 0.62));
  const canvas = chart(width, height, `${sweep.metric} against ${sweep.whole}, one dot a trial`);
  const trials = sweep.trials.filter((trial) => trial.score != null && trial.whole != null);
  const base = sweep.base;
  if (!trials.length) return empty(canvas, width, height, "no trial has a score yet");
  const all = base ? [...trials, base] : trials;
  const x = scale(...padded(all.map((one) => one.whole)), 76, width - 16);
  const y = scale(...padded(all.map((one) => one.score)), height - 52, 14);
  frame(canvas, x, y, [`${sweep.whole} (all rows)`, sweep.metric]);
  if (sweep.floor != null && sweep.floor > x.low && sweep.floor < x.high) {
    canvas.append(svg("rect", { x: x.start, y: y.end, width: x(sweep.floor) - x.start, height: y.start - y.end, class: "below" }));
    canvas.append(svg("line", { x1: x(sweep.floor), x2: x(sweep.floor), y1: y.start, y2: y.end, class: "floor" }));
  }
  const on = trials.filter((trial) => trial.on_front).sort((a, b) => a.whole - b.whole);
  if (on.length > 1) canvas.append(svg("path", { d: on.map((one, number) => `${number ? "L" : "M"}${x(one.whole)},${y(one.score)}`).join(""), class: "front-line" }));
  for (const trial of trials) canvas.append(dot(trial, x(trial.whole), y(trial.score), sweep, open));
  if (base) {
    const at = [x(base.whole), y(base.score)];
    const mark = svg("path", { d: `M${at[0] - 6},${at[1]}L${at[0]},${at[1] - 6}L${at[0] + 6},${at[1]}L${at[0]},${at[1] + 6}Z`, class: "base-mark" });
    mark.append(svg("title", {}, `the base ranker: ${base.score.toFixed(4)}, over all rows ${base.whole.toFixed(4)}`));
    canvas.append(mark, text(at[0] + 10, at[1] + 4, "base", { class: "tick halo" }));
  }
  return canvas;
}

function dot(trial, cx, cy, sweep, open) {
  const kind = trial.number === sweep.best?.number ? "best" : trial.on_front ? "on-front" : trial.feasible ? "feasible" : trial.status;
  const made = svg("circle", { cx, cy, r: trial.number === sweep.best?.number ? 6 : 4.5, class: `trial-dot ${kind}${trial.number === 0 ? " start" : ""}`, "data-trial": trial.number });
  const whole = trial.whole == null ? "" : `, over all rows ${trial.whole.toFixed(4)}`;
  made.append(svg("title", {}, `trial ${trial.number}: ${trial.score.toFixed(4)}${whole} · ${trial.changes}`));
  made.addEventListener("click", () => open(trial.number));
  return made;
}

// Trials in the order begun, and the best so far that may win.
export function history(sweep, open, width) {
  const height = Math.min(360, Math.max(260, width * 0.62));
  const canvas = chart(width, height, `${sweep.metric} by trial, in the order begun`);
  const trials = sweep.trials.filter((trial) => trial.score != null).sort((a, b) => a.number - b.number);
  if (!trials.length) return empty(canvas, width, height, "no trial has a score yet");
  const x = scale(-0.5, Math.max(1, sweep.num_trials - 1) + 0.5, 76, width - 16);
  const y = scale(...padded([...trials.map((one) => one.score), ...(sweep.base ? [sweep.base.score] : [])]), height - 52, 14);
  frame(canvas, x, y, ["trial", sweep.metric], 1);
  if (sweep.base) {
    canvas.append(svg("line", { x1: x.start, x2: x.end, y1: y(sweep.base.score), y2: y(sweep.base.score), class: "base-line" }));
    canvas.append(text(x.end - 4, y(sweep.base.score) - 6, "base", { "text-anchor": "end", class: "tick halo" }));
  }
  let best = null;
  const steps = [];
  for (const trial of trials) {
    if (trial.feasible && (best === null || trial.score > best)) {
      if (best !== null) steps.push([x(trial.number), y(best)]);
      best = trial.score;
      steps.push([x(trial.number), y(best)]);
    }
  }
  if (best !== null) steps.push([x(trials.at(-1).number), y(best)]);
  if (steps.length > 1) canvas.append(svg("path", { d: steps.map((at, number) => `${number ? "L" : "M"}${at[0]},${at[1]}`).join(""), class: "best-line" }));
  for (const trial of trials) canvas.append(dot(trial, x(trial.number), y(trial.score), sweep, open));
  return canvas;
}

// A trial's metric by epoch, the config as it stood beside it.
export function curve(trial, start, sweep, width) {
  const height = 240;
  const canvas = chart(width, height, `${sweep.metric} of trial ${trial.number} by epoch`);
  const lines = [[start, "start-curve"], [trial, "trial-curve"]].filter(([one]) => one && one.curve.some((at) => at.score != null));
  const known = lines.flatMap(([one]) => one.curve.map((at) => at.score)).filter((value) => value != null);
  if (!known.length) return empty(canvas, width, height, "no epoch is recorded yet");
  const x = scale(1, Math.max(2, sweep.epochs), 64, width - 20);
  const y = scale(...padded([...known, ...(sweep.base ? [sweep.base.score] : [])]), height - 46, 12);
  for (const value of ticks(y.low, y.high, 4).found) {
    canvas.append(svg("line", { x1: x.start, x2: x.end, y1: y(value), y2: y(value), class: "grid" }));
    canvas.append(text(x.start - 8, y(value) + 4, value.toFixed(ticks(y.low, y.high, 4).digits), { "text-anchor": "end", class: "tick" }));
  }
  const every = Math.ceil(sweep.epochs / 10);
  for (let epoch = 1; epoch <= sweep.epochs; epoch += every) canvas.append(text(x(epoch), y.start + 18, String(epoch), { "text-anchor": "middle", class: "tick" }));
  canvas.append(text((x.start + x.end) / 2, height - 8, "epoch", { "text-anchor": "middle", class: "axis-name" }));
  if (sweep.base) canvas.append(svg("line", { x1: x.start, x2: x.end, y1: y(sweep.base.score), y2: y(sweep.base.score), class: "base-line" }));
  for (const [one, kind] of lines) {
    const points = one.curve.filter((at) => at.score != null);
    canvas.append(svg("path", { d: points.map((at, number) => `${number ? "L" : "M"}${x(at.epoch)},${y(at.score)}`).join(""), class: kind }));
    for (const at of points) {
      const mark = svg("circle", { cx: x(at.epoch), cy: y(at.score), r: 3.5, class: `${kind}-dot` });
      mark.append(svg("title", {}, `epoch ${at.epoch}: ${at.score.toFixed(4)}`));
      canvas.append(mark);
    }
  }
  return canvas;
}
