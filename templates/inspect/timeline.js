// The timeline of one run: workers down, time across. Data: mkc/inspect/timeline.py. Times are nanoseconds.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("timeline");
const hint = document.getElementById("hint");
const pen = canvas.getContext("2d");
const count = data.task.length;
const end = Math.max(1, ...[data.done.reduce((a, b) => Math.max(a, b), 0)]);
const MARGIN = 40; // worker numbers
const AXIS = data.phases.length > 1 ? 44 : 26; // times, and steps above them

const rows = Array.from({ length: data.workers }, () => []); // runs of each worker, in order
for (let i = 0; i < count; ++i) rows[data.worker[i]].push(i);
const opOf = (i) => data.tasks[data.task[i]][2];

let from = 0, to = end; // what is seen, in time
let top_ = 0; // and in points down
let only = -1; // the operator that is not faded, or -1
let pointed = -1; // the run under the pointer
let width = 0, height = 0, row = 0;
let style = {};

// ---- numbers

function time(ns) {
  const [unit, scale] = ns < 1e3 ? ["ns", 1] : ns < 1e6 ? ["µs", 1e3] : ns < 1e9 ? ["ms", 1e6] : ["s", 1e9];
  const value = ns / scale;
  return `${value >= 100 || scale === 1 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
}
const moment = (ns) => `${(ns / 1e3).toFixed(2)} µs`;
const share = (part, whole) => `${whole > 0 ? ((100 * part) / whole).toFixed(1) : "0.0"} %`;
const many = (n, thing) => `${n.toLocaleString("en")} ${thing}${n === 1 ? "" : "s"}`;

// ---- the table

function totals() {
  const ops = data.ops.map(() => ({ runs: 0, work: 0, wait: 0 }));
  for (let i = 0; i < count; ++i) {
    const total = ops[opOf(i)];
    total.runs += 1;
    total.work += data.done[i] - data.ready[i];
    total.wait += data.ready[i] - data.taken[i];
  }
  return ops;
}

function cells(line, texts, tag = "td") {
  for (const text of texts) line.appendChild(document.createElement(tag)).textContent = text;
  return line;
}

function legend() {
  const table = document.getElementById("legend");
  const ops = totals();
  const whole = end * data.workers;
  const work = ops.reduce((sum, op) => sum + op.work, 0);
  const wait = ops.reduce((sum, op) => sum + op.wait, 0);
  cells(table.insertRow(), ["operator", "tasks", "worker time", "share", "each", "waited"], "th");
  const order = data.ops.map((_, k) => k).filter((k) => ops[k].runs).sort((a, b) => ops[b].work - ops[a].work);
  for (const k of order) {
    const { runs, work, wait } = ops[k];
    const line = cells(table.insertRow(), [data.ops[k].name, runs.toLocaleString("en"), time(work), share(work, whole), time(work / runs), share(wait, work + wait)]);
    swatch(line).style.background = data.ops[k].colour;
    line.className = "op";
    line.onclick = () => {
      only = only === k ? -1 : k;
      for (const other of table.querySelectorAll("tr.op")) other.classList.toggle("faded", only >= 0 && other !== line);
      draw();
    };
  }
  for (const [name, spent] of [["waiting", wait], ["idle", whole - work - wait]]) {
    const line = cells(table.insertRow(), [name, "", time(spent), share(spent, whole), "", ""]);
    line.className = "rest";
    swatch(line).className = name === "waiting" ? "wait" : "idle";
  }
  document.getElementById("facts").textContent =
    `${time(end)} · ${many(data.workers, "worker")} · ${many(count, "task")} · ${share(work, whole)} working, ` +
    `${share(wait, whole)} waiting, ${share(whole - work - wait, whole)} idle`;
}
const swatch = (line) => line.cells[0].insertBefore(document.createElement("i"), line.cells[0].firstChild);

// ---- the drawing

const x = (ns) => MARGIN + ((ns - from) / (to - from)) * (width - MARGIN);
const y = (worker) => AXIS + worker * row - top_;
const at = (px) => from + ((px - MARGIN) / (width - MARGIN)) * (to - from);

function hatch() {
  const tile = document.createElement("canvas");
  const scale = devicePixelRatio || 1;
  tile.width = tile.height = 5 * scale;
  const ink = tile.getContext("2d");
  ink.scale(scale, scale);
  ink.fillStyle = style.wait;
  ink.fillRect(0, 0, 5, 5);
  ink.strokeStyle = style.hatch;
  ink.lineWidth = 0.8;
  ink.beginPath();
  for (const shift of [-5, 0, 5]) ink.moveTo(shift - 1, 6), ink.lineTo(shift + 6, -1);
  ink.stroke();
  const pattern = pen.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / scale));
  return pattern;
}

function fit() {
  const variables = getComputedStyle(document.documentElement);
  for (const name of ["paper", "ink", "soft", "rule", "row", "wait", "hatch"]) style[name] = variables.getPropertyValue(`--${name}`).trim();
  const tall = data.workers > 24;
  document.querySelector("main").classList.toggle("tall", tall && innerWidth > 1100);
  const below = tall && innerWidth > 1100 ? 24 : document.getElementById("legend").offsetHeight + 48;
  const room = Math.max(220, innerHeight - canvas.getBoundingClientRect().top - scrollY - below);
  row = Math.max(4, Math.min(34, (room - AXIS) / data.workers));
  height = Math.round(Math.min(room, AXIS + row * data.workers + 1));
  canvas.style.height = `${height}px`;
  width = canvas.clientWidth;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  style.hatch = hatch();
  draw();
}

let asked = 0;
function draw() {
  asked ||= requestAnimationFrame(paint);
}

function paint() {
  asked = 0;
  pen.fillStyle = style.paper;
  pen.fillRect(0, 0, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(MARGIN, AXIS, width - MARGIN, height - AXIS);
  pen.clip();
  for (let w = 0; w < data.workers; ++w) if (y(w + 1) > AXIS && y(w) < height) drawRow(w);
  pen.restore();
  drawAxis();
  drawNames();
}

function drawRow(w) {
  const runs = rows[w], gap = row >= 8 ? 1.5 : row >= 5 ? 1 : 0.5;
  const up = y(w), tall = row - gap;
  pen.fillStyle = style.row;
  pen.fillRect(MARGIN, up, width - MARGIN, tall);
  let done = -1; // the column of pixels that a very short run has filled
  for (let k = firstAfter(runs, from); k < runs.length && data.taken[runs[k]] < to; ++k) {
    const i = runs[k];
    const a = x(data.taken[i]), b = x(data.ready[i]), c = x(data.done[i]);
    if (c - a < 0.7 && Math.floor(c) === done) continue;
    done = Math.floor(c);
    pen.globalAlpha = only >= 0 && opOf(i) !== only ? 0.12 : 1;
    if (b - a > 0.3) {
      pen.fillStyle = row < 10 ? style.wait : style.hatch;
      pen.fillRect(a, up + tall * 0.14, b - a, tall * 0.72);
    }
    pen.fillStyle = data.ops[opOf(i)].colour;
    pen.fillRect(b, up, Math.max(0.7, c - b - (c - b > 4 ? 0.6 : 0)), tall);
    if (i === pointed) outline(a, up, Math.max(1, c - a), tall);
    if (row >= 15 && c - b > 44) label(i, b, c, up + tall / 2);
  }
  pen.globalAlpha = 1;
}

function firstAfter(runs, ns) {
  let low = 0, high = runs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.done[runs[middle]] < ns) low = middle + 1;
    else high = middle;
  }
  return low;
}

function outline(left, up, wide, tall) {
  pen.strokeStyle = style.ink;
  pen.lineWidth = 1.5;
  pen.strokeRect(left, up + 0.5, wide, Math.max(1, tall - 1));
}

function label(i, left, right, middle) {
  const [name, path] = data.tasks[data.task[i]];
  const edge = Math.max(left, MARGIN), room = Math.min(right, width) - edge - 10;
  if (room < 30) return;
  pen.save();
  pen.beginPath();
  pen.rect(edge, middle - row / 2, room + 6, row);
  pen.clip();
  pen.fillStyle = light(data.ops[opOf(i)].colour) ? "rgb(0 0 0 / 80%)" : "#fff";
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const long = path ? `${data.ops[opOf(i)].name}  ${path}` : name;
  pen.fillText(pen.measureText(long).width <= room ? long : data.ops[opOf(i)].name, edge + 5, middle + 0.5);
  pen.restore();
}
function light(colour) {
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}

function drawAxis() {
  pen.fillStyle = style.paper;
  pen.fillRect(0, 0, width, AXIS);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "alphabetic";
  pen.textAlign = "left";
  const about = (to - from) / Math.max(2, (width - MARGIN) / 110);
  const power = 10 ** Math.floor(Math.log10(about));
  const step = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((s) => s >= about));
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
    pen.fillStyle = style.rule;
    pen.fillRect(x(t), AXIS - 8, 1, 8);
    pen.fillStyle = style.soft;
    const text = tick(t, step);
    if (x(t) + 6 + pen.measureText(text).width < width) pen.fillText(text, x(t) + 4, AXIS - 6);
  }
  if (data.phases.length > 1) drawPhases();
}

function tick(t, step) {
  const [unit, scale] = to < 1e3 ? ["ns", 1] : to < 1e6 ? ["µs", 1e3] : to < 1e9 ? ["ms", 1e6] : ["s", 1e9];
  const digits = Math.max(0, Math.ceil(-Math.log10(step / scale)));
  return `${(t / scale).toFixed(Math.min(digits, 6))} ${unit}`;
}

function drawPhases() {
  for (const [k, [name, a, b]] of data.phases.entries()) {
    if (b < from || a > to) continue;
    const left = Math.max(MARGIN, x(a)), right = Math.min(width, x(k + 1 < data.phases.length ? Math.min(b, data.phases[k + 1][1]) : b));
    if (right - left < 2) continue;
    pen.fillStyle = style.rule;
    pen.fillRect(left, 2, right - left - 1.5, 16);
    pen.fillStyle = style.soft;
    const text = pen.measureText(name).width < right - left - 10 ? name : name.replace(/.*step /, "");
    if (pen.measureText(text).width < right - left - 6) pen.fillText(text, left + 5, 14);
  }
}

function drawNames() {
  pen.fillStyle = style.paper;
  pen.fillRect(0, AXIS, MARGIN, height - AXIS);
  pen.fillStyle = style.soft;
  pen.font = `${row >= 12 ? 11 : 10}px system-ui, sans-serif`;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const every = [1, 2, 4, 8, 16, 32].find((n) => n * row >= 11) || 32;
  for (let w = 0; w < data.workers; w += every) {
    const middle = y(w) + row / 2;
    if (middle > AXIS + 3 && middle < height) pen.fillText(`w${w}`, MARGIN - 8, middle);
  }
}

// ---- moving about

function see(a, b) {
  const span = Math.min(end * 1.02, Math.max(20, b - a));
  const start = Math.min(Math.max(a, -0.01 * end), Math.max(-0.01 * end, end * 1.01 - span));
  from = start;
  to = start + span;
  draw();
}

canvas.onwheel = (event) => {
  event.preventDefault();
  if (event.shiftKey) return slide(event.deltaY || event.deltaX);
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const shift = (event.deltaX / width) * (to - from);
    return see(from + shift, to + shift);
  }
  const here = at(event.offsetX), factor = 1.0016 ** event.deltaY;
  see(here - (here - from) * factor, here + (to - here) * factor);
};
function slide(points) {
  top_ = Math.max(0, Math.min(data.workers * row - (height - AXIS), top_ + points));
  draw();
}

let held = null;
canvas.onpointerdown = (event) => {
  held = { x: event.offsetX, y: event.offsetY, from, to, top: top_ };
  canvas.setPointerCapture(event.pointerId);
  canvas.classList.add("held");
};
canvas.onpointerup = canvas.onpointercancel = () => {
  held = null;
  canvas.classList.remove("held");
};
canvas.onpointermove = (event) => {
  if (!held) return point(event);
  const shift = ((held.x - event.offsetX) / (width - MARGIN)) * (held.to - held.from);
  top_ = held.top;
  slide(held.y - event.offsetY);
  see(held.from + shift, held.to + shift);
};
canvas.onpointerleave = () => {
  hint.hidden = true;
  pointed = -1;
  draw();
};
canvas.ondblclick = () => see(0, end);
canvas.onkeydown = (event) => {
  const step = (to - from) / 8, middle = (from + to) / 2;
  const moves = {
    ArrowLeft: () => see(from - step, to - step),
    ArrowRight: () => see(from + step, to + step),
    ArrowUp: () => slide(-40),
    ArrowDown: () => slide(40),
    "+": () => see(middle - 3 * step, middle + 3 * step),
    "-": () => see(middle - 6 * step, middle + 6 * step),
    0: () => see(0, end),
  };
  if (moves[event.key]) event.preventDefault(), moves[event.key]();
};

function under(px, py) {
  const w = Math.floor((py - AXIS + top_) / row);
  if (px < MARGIN || py < AXIS || w < 0 || w >= data.workers) return -1;
  const slack = (to - from) / width, runs = rows[w];
  const k = firstAfter(runs, at(px) - slack);
  return k < runs.length && data.taken[runs[k]] <= at(px) + slack ? runs[k] : -1;
}

function point(event) {
  const found = under(event.offsetX, event.offsetY);
  if (found !== pointed) {
    pointed = found;
    draw();
  }
  hint.hidden = found < 0;
  if (found < 0) return;
  const [name, path, op, number] = data.tasks[data.task[found]];
  const { worker, step, taken, ready, done } = Object.fromEntries(["worker", "step", "taken", "ready", "done"].map((k) => [k, data[k][found]]));
  hint.replaceChildren();
  hint.appendChild(document.createElement("b")).textContent = name;
  hint.append(
    `\n${[path, data.ops[op].name].filter(Boolean).join(" · ")}\n` +
      `waited ${time(ready - taken)}, took ${time(done - ready)}\n` +
      `from ${moment(ready)} to ${moment(done)}\n` +
      `task ${number} · worker ${worker} · step ${step}`,
  );
  hint.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - hint.offsetWidth - 12))}px`;
  const low = event.clientY + 18;
  hint.style.top = `${low + hint.offsetHeight > innerHeight ? event.clientY - hint.offsetHeight - 12 : low}px`;
}

legend();
fit();
addEventListener("resize", fit);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fit);
