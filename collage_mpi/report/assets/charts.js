// Draws the page's charts with uPlot from the JSON in #charts; nothing is computed here but places.
"use strict";
(() => {
const runs = JSON.parse(document.getElementById("charts").textContent);
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (i) => css(`--run-${i % 7}`);
const number = (x) => x == null ? "" : Math.abs(x) >= 1000
  ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(4));
const share = (y) => y == null ? "" : `${+(100 * y).toPrecision(4)} %`;

// Ticks of a logarithmic axis: 1, 2, 5 and their tens; equal steps where few of them are in view.
function logTicks(u, i, min, max) {
  const steps = max / min > 500 ? [1] : [1, 2, 5], found = [];
  for (let ten = Math.floor(Math.log10(min)); ten <= Math.log10(max); ten++)
    found.push(...steps.map((step) => +`${step}e${ten}`));
  const shown = found.filter((tick) => tick >= min && tick <= max);
  if (shown.length > 2) return shown;
  const step = 10 ** Math.floor(Math.log10((max - min) / 2));
  const first = Math.ceil(min / step), last = Math.floor(max / step);
  return Array.from({length: last - first + 1}, (_, k) => +((first + k) * step).toPrecision(12));
}
const logAxis = {splits: logTicks, filter: (u, ticks) => ticks};

function axis(label, more) {
  const line = {stroke: css("--line"), width: 1};
  return {label, stroke: css("--soft"), grid: line, ticks: line, labelSize: 22, size: 38,
    font: "12px system-ui", labelFont: "12px system-ui",
    values: (u, ticks) => ticks.map((t) => t == null ? "" : number(t)), ...more};
}

// A line's value at the cursor: its last point at or before it, since steps hold until the next.
function lastBefore(u, series, index, x) {
  const ys = u.data[series];
  let i = index;
  while (i > 0 && (u.data[0][i] > x || ys[i] == null)) i--;
  return i;
}

function line(i, name, value, dash, more) {
  return {label: name, stroke: colour(i), width: 2, dash, value: (u, y) => value(y),
    spanGaps: true, points: {show: false}, ...more};
}

// What is drawn over a finished chart, in canvas pixels, inside the plot's frame.
function inside(u, draw) {
  const {left, top, width, height} = u.bbox;
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(left, top, width, height);
  u.ctx.clip();
  draw(u.ctx, (x) => u.valToPos(x, "x", true), (y) => u.valToPos(y, "y", true));
  u.ctx.restore();
}

function dot(ctx, x, y, fill) {
  ctx.beginPath();
  ctx.arc(x, y, 4 * devicePixelRatio, 0, 2 * Math.PI);
  ctx.fillStyle = fill;
  ctx.strokeStyle = css("--paper");
  ctx.lineWidth = 1.5 * devicePixelRatio;
  ctx.fill();
  ctx.stroke();
}

// ---- distribution and tail ---------------------------------------------------

function curves(tail) {
  const shown = runs.map((run, i) => ({...run, i})).filter((run) => run.curve);
  const least = Math.min(...shown.map((run) => 1 / run.curve.n));
  const low = Math.min(...shown.map((run) => run.curve.ms[0]));
  const high = Math.max(...shown.map((run) => run.curve.ms.at(-1)));
  const log = low > 0 && high / low > 10;
  const marks = shown.flatMap(({curve, i}) => curve.marks.map((mark) => ({...mark, i})))
    .filter((mark) => tail || mark.q <= 0.95);  // above it they lie on one another
  const levels = [...new Map(marks.map((mark) => [mark.q, mark.name]))];
  const tables = shown.map(({curve}) => {  // a curve begins with a step at its least value
    const x = [curve.ms[0] * (1 - 1e-9), ...curve.ms];
    const done = [0, ...curve.share];
    return [x, tail ? done.map((f) => f < 1 ? 1 - f : 1e-12) : done];
  });
  const stepped = uPlot.paths.stepped({align: 1});
  const range = log ? [low / 1.1, high * 1.2] : [0, high * 1.05 || 1];
  return {
    height: 300, range, marks: tables.reduce((n, [x]) => n + x.length, 0),
    data: tables.length > 1 ? uPlot.join(tables) : tables[0],
    options: {
      scales: {
        x: {time: false, distr: log ? 3 : 1},
        y: tail ? {distr: 3, range: [least / 1.5, 1.1]} : {range: [0, 1.02]},
      },
      axes: [axis(log ? "latency of a group, ms (log scale)" : "latency of a group, ms",
        log ? logAxis : {}),
        axis(tail ? "still waiting, % of groups (log scale)" : "done, % of groups", {size: 58, ...(tail ? logAxis : {}),
          values: (u, ticks) => ticks.map((t) => t == null ? "" : number(100 * t))})],
      series: [{label: "latency, ms", value: (u, x) => number(x)}, ...shown.map(({name, curve, i}) =>
        line(i, `${name}, n = ${curve.n.toLocaleString("en")}`,
          (y) => y != null && y < least / 2 ? "0 %" : share(y), DASHES[i % 4], {paths: stepped}))],
      cursor: {dataIdx: lastBefore},
      hooks: {draw: [(u) => inside(u, (ctx, x, y) => {
        ctx.font = `${11 * devicePixelRatio}px system-ui`;
        ctx.textAlign = "right";
        ctx.textBaseline = "bottom";
        for (const [q, name] of levels) {
          const level = y(tail ? 1 - q : q);
          ctx.strokeStyle = ctx.fillStyle = css("--soft");
          ctx.setLineDash([2, 4]);
          ctx.beginPath();
          ctx.moveTo(u.bbox.left, level);
          ctx.lineTo(u.bbox.left + u.bbox.width, level);
          ctx.stroke();
          ctx.fillText(name, u.bbox.left + u.bbox.width - 4, level - 2 * devicePixelRatio);
        }
        ctx.setLineDash([]);
        for (const mark of marks)
          if (u.series[1 + shown.findIndex((run) => run.i === mark.i)].show)
            dot(ctx, x(mark.ms), y(tail ? 1 - mark.q : mark.q), colour(mark.i));
      })]},
    },
  };
}

// ---- over time ---------------------------------------------------------------

function overTime() {
  const shown = runs.map((run, i) => ({...run, i})).filter((run) => run.time);
  const tables = shown.map(({time}) => [time.s, time.median,
    ...(time.each > 1 ? [time.slowest] : []), ...time.teams.map(([, medians]) => medians)]);
  const series = shown.flatMap(({name, time, i}) => {
    const points = {show: time.s.length < 150, size: 4, fill: colour(i)};
    const median = line(i, time.each > 1 ? `${name}, median` : name, number, [], {points});
    const slowest = time.each > 1
      ? [line(i, `${name}, slowest`, number, [3, 4], {width: 1})] : [];
    return [median, ...slowest, ...time.teams.map(([team], k) =>
      line(i + k + 1, `${name}, ${team}, median`, number, DASHES[(k + 1) % 4], {width: 1}))];
  });
  const end = Math.max(...shown.map(({time}) => time.s.at(-1)));
  const least = Math.min(...shown.map(({time}) => Math.min(...time.median)));
  const most = Math.max(...shown.map(({time}) => Math.max(...time.slowest)));
  const log = least > 0 && most / least > 30;
  return {
    height: 280, range: [0, end * 1.01 || 1], marks: tables.reduce((n, t) => n + t[0].length, 0),
    data: tables.length > 1 ? uPlot.join(tables) : tables[0],
    options: {
      scales: {x: {time: false},
        y: log ? {distr: 3, range: [least / 1.2, most * 1.2]} : {range: [0, most * 1.05 || 1]}},
      axes: [axis("seconds since the first measured release"),
        axis(log ? "latency of a group, ms (log scale)" : "latency of a group, ms",
          {size: 58, ...(log ? logAxis : {})})],
      series: [{label: "s", value: (u, x) => number(x)}, ...series],
      cursor: {dataIdx: lastBefore},
      hooks: {draw: [(u) => inside(u, (ctx, x) => {
        for (const {time, i} of shown) for (const begin of time.sessions) {
          ctx.strokeStyle = colour(i);
          ctx.setLineDash([4, 4]);
          ctx.beginPath();
          ctx.moveTo(x(begin), u.bbox.top);
          ctx.lineTo(x(begin), u.bbox.top + u.bbox.height);
          ctx.stroke();
        }
      })]},
    },
  };
}

// ---- ranks -------------------------------------------------------------------

function timeline(figure) {
  const {timeline: shown} = runs[+figure.dataset.run];
  const rows = shown.ranks.length;
  const told = figure.querySelector("output");
  function drawBar(u, ctx, x, y, bar) {
    const [row, look, , sent, start, end, lane, lanes, straggler] = bar;
    const pitch = Math.abs(y(1) - y(0)), height = 0.66 * pitch / lanes;
    const top = y(row) - 0.33 * pitch + lane * height;
    ctx.fillStyle = css("--soft");
    if (start > sent) ctx.fillRect(x(sent), y(row) + 0.36 * pitch, x(start) - x(sent), 0.1 * pitch);
    const fill = shown.looks[look].colour;
    ctx.fillStyle = fill === "#000000" ? css("--ink") : fill;
    ctx.fillRect(x(start), top, Math.max(x(end) - x(start), 2), height - 1);
    if (!straggler) return;
    ctx.strokeStyle = css("--ink");
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.strokeRect(x(start), top, x(end) - x(start), height - 1);
  }
  function tell(u) {
    const {left, top} = u.cursor;
    if (left == null || left < 0) return;
    const x = u.posToVal(left, "x"), row = Math.round(u.posToVal(top, "y"));
    const bar = shown.bars.find(([r, , , sent, , end]) => r === row && sent <= x && x <= end);
    const rank = shown.ranks[row];
    told.textContent = rank == null ? "" : bar == null ? `${rank}: idle at ${number(x)} ms`
      : `${rank}, group ${bar[2]}: waited ${number(bar[4] - bar[3])} ms, worked ` +
        `${number(bar[5] - bar[4])} ms; ${shown.looks[bar[1]].name}`;
  }
  return {
    height: 70 + 22 * rows, range: [0, shown.end || 1], marks: shown.bars.length,
    data: [[0, shown.end || 1], [null, null]],
    options: {
      legend: {show: false},
      scales: {x: {time: false}, y: {dir: -1, range: [-0.6, rows - 0.4]}},
      axes: [axis(`ms since the release of group ${shown.first}`), axis("", {size: 78, labelSize: 0,
        grid: {show: false}, splits: () => shown.ranks.map((_, i) => i),
        values: (u, ticks) => ticks.map((i) => shown.ranks[i])})],
      series: [{}, {show: false}],
      cursor: {points: {show: false}},
      hooks: {setCursor: [tell], draw: [(u) => inside(u, (ctx, x, y) => {
        ctx.strokeStyle = css("--soft");
        ctx.setLineDash([3, 4]);
        for (const [, at] of shown.releases) {
          ctx.beginPath();
          ctx.moveTo(x(at), u.bbox.top);
          ctx.lineTo(x(at), u.bbox.top + u.bbox.height);
          ctx.stroke();
        }
        ctx.setLineDash([]);
        for (const bar of shown.bars) drawBar(u, ctx, x, y, bar);
      })]},
    },
  };
}

// ---- all of them -------------------------------------------------------------

const KINDS = {cdf: () => curves(false), tail: () => curves(true), time: overTime, timeline};

function zoom(u, full, factor) {
  if (!factor) return u.setScale("x", {min: full[0], max: full[1]});
  const width = u.over.clientWidth, at = u.cursor.left >= 0 ? u.cursor.left : width / 2;
  const min = Math.max(full[0], u.posToVal(at - factor * at, "x"));
  const max = Math.min(full[1], u.posToVal(at + factor * (width - at), "x"));
  if (max > min) u.setScale("x", {min, max});
}

function press(u, full, event) {
  const step = event.shiftKey ? 40 : 8;
  const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -22], ArrowDown: [0, 22]};
  const factors = {"+": 0.5, "=": 0.5, "-": 2, "0": 0, Escape: 0};
  if (event.target.closest(".u-legend") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in moves) {
    const {clientWidth: width, clientHeight: height} = u.over;
    const from = u.cursor.left >= 0 ? u.cursor : {left: width / 2, top: height / 2};
    const [x, y] = moves[event.key];
    u.setCursor({left: Math.min(width - 1, Math.max(0, from.left + x)),
      top: Math.min(height - 1, Math.max(0, from.top + y))});
  } else if (event.key in factors) zoom(u, full, factors[event.key]);
  else return;
  event.preventDefault();
}

function make(figure) {
  const place = figure.querySelector(".plot");
  const {data, options, height, range, marks} = KINDS[figure.dataset.kind](figure);
  options.scales.x.range = (u, min, max) => min === data[0][0] && max === data[0].at(-1)
    ? range : [min, max];
  place.replaceChildren();
  // Without a cursor there are no values: the legend shows names only.
  const idle = (u) => u.root.classList.toggle("idle", !(u.cursor.left >= 0));
  const {setCursor = [], ...hooks} = options.hooks;
  const u = new uPlot({width: Math.max(place.clientWidth, 240), height, ...options,
    hooks: {...hooks, setCursor: [idle, ...setCursor]},
    cursor: {drag: {x: true, y: false}, ...options.cursor}}, data, place);
  idle(u);
  for (const name of u.root.querySelectorAll(".u-series th")) {
    name.tabIndex = 0;
    name.onkeydown = (event) => { if (event.key === "Enter") name.click(); };
  }
  figure.dataset.marks = marks;
  figure.press = (event) => press(u, range, event);
  figure.zoom = (factor) => zoom(u, range, factor);
  figure.fit = () => u.setSize({width: Math.max(place.clientWidth, 240), height});
}

const figures = [...document.querySelectorAll(".chart")];
for (const figure of figures) {
  make(figure);
  figure.querySelector(".plot").addEventListener("keydown", (event) => figure.press(event));
  for (const button of figure.querySelectorAll("button"))
    button.onclick = () => figure.zoom(+button.dataset.zoom);
}
function hint(table) {  // of columns that lie to the right of what is in view
  table.previousElementSibling.hidden =
    table.scrollLeft + table.clientWidth >= table.scrollWidth - 2;
}
const tables = [...document.querySelectorAll(".scroll")];
for (const table of tables) {
  hint(table);
  table.addEventListener("scroll", () => hint(table));
}
for (const part of document.querySelectorAll("details"))
  part.addEventListener("toggle", () => tables.forEach(hint));
addEventListener("resize", () => {
  figures.forEach((figure) => figure.fit());
  tables.forEach(hint);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => figures.forEach(make));
})();
