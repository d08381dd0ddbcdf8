"use strict";
// Asks the server for the steps that are new, and draws them. Text of the run is only ever set as text.
const EVERY_MS = 2000, WIDTH = 420, HEIGHT = 170, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22;
const SVG = "http://www.w3.org/2000/svg";
const percent = value => value == null ? "-" : (100 * value).toFixed(1) + "%";
const figure = value => value == null ? "-" : value >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString();
const giga = value => (value / 1e9).toFixed(1) + " GB";
// title, how a value is shown, [key or function, class, name] of each line, figure of the evaluations
const CHARTS = [
  ["Response length, tokens", figure, [["cap", "cap", "cap"], ["response_tokens_mean", "ink", "mean"]], "tokens_mean"],
  ["Accuracy", percent, [["accuracy", "ink", ""]], "accuracy"],
  ["Truncated responses", percent, [["truncation_rate", "ink", ""]], "truncation_rate"],
  ["Reward", figure, [["reward_mean", "ink", ""]]],
  ["Entropy, nats per token", figure, [["entropy", "ink", ""]]],
  ["Loss", figure, [["loss", "ink", ""]]],
  ["Gradient norm", figure, [["grad_norm", "ink", ""]]],
  ["Clipped tokens", percent, [[row => sum(row, "clip_low_fraction", "clip_high_fraction"), "ink", ""]]],
  ["KL to the sampler, nats", figure, [["approx_kl", "ink", "of the update"], ["mismatch_k3", "high", "of the engine"]]],
  ["Response tokens a second", figure, [["tokens_per_s", "ink", ""]]],
  ["Seconds of a step", figure, [["step_time_s", "ink", "all"], ["rollout_s", "low", "rollout"], ["train_s", "high", "update"]]],
  ["GPU memory", giga, [["gpu_memory", "ink", "in use"], ["memory_peak", "low", "peak of the update"]]],
];
let rows = [], evals = [], mark = 0, files = "", opened = new Set();
const $ = id => document.getElementById(id);

function sum(row, ...keys) {
  return keys.some(key => row[key] === undefined) ? undefined : keys.reduce((total, key) => total + row[key], 0);
}
function make(tag, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}
function element(tag, text = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}
const at = (row, key) => typeof key === "function" ? key(row) : row[key];

function ticks(low, high) {
  const raw = (high - low) / 5, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(one => one * size).find(one => one >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found;
}

function draw(box, [title, show, lines, evaluated]) {
  const held = lines.map(([key, kind, name]) => [rows.filter(row => at(row, key) !== undefined)
    .map(row => [row.step + 1, at(row, key)]), kind, name]).filter(([points]) => points.length);
  const checks = evaluated ? evals.filter(row => row[evaluated] !== undefined) : [];
  box.hidden = !held.length;
  if (!held.length) return;
  const values = [...held.flatMap(([points]) => points.map(point => point[1])), ...checks.map(row => row[evaluated])];
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (low > 0 && low < 0.5 * high) low = 0;
  if (high === low) { high += Math.abs(high) || 1; low = Math.min(low, 0); }
  high += 0.06 * (high - low);
  const last = Math.max(rows[rows.length - 1].step + 1, ...checks.map(row => row.step)), first = Math.min(rows[0].step, 0);
  const x = step => LEFT + (step - first) / (last - first || 1) * (WIDTH - LEFT - RIGHT);
  const y = value => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const svg = make("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img"});
  let start = null;
  rows.forEach((row, index) => {
    if (row.phase === "compression" && start === null) start = row.step;
    const next = rows[index + 1];
    if (start !== null && (!next || next.phase !== "compression")) {
      svg.append(make("rect", {class: "shade", x: x(start), y: TOP, width: x(row.step + 1) - x(start), height: HEIGHT - TOP - BOTTOM}));
      start = null;
    }
  });
  for (const value of ticks(low, high)) {
    svg.append(make("line", {class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
    svg.append(make("text", {x: LEFT - 5, y: y(value) + 4, "text-anchor": "end"}, show(value)));
  }
  for (const step of ticks(first, last).filter(Number.isInteger))
    svg.append(make("text", {x: x(step), y: HEIGHT - 6, "text-anchor": "middle"}, step.toLocaleString("en")));
  for (const [points, kind] of held)
    svg.append(make("path", {class: `curve ${kind}`, d: "M" + points.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}));
  for (const row of checks) {
    const kind = row.name.startsWith("siri-low") ? " low" : row.name.startsWith("siri-high") ? " high" : "";
    const point = make("circle", {class: `point${kind}`, cx: x(row.step), cy: y(row[evaluated]), r: 4});
    point.append(make("title", {}, `${row.name}, step ${row.step}: ${show(row[evaluated])}`));
    svg.append(point);
  }
  const says = step => held.map(([points, , name]) => {
    const near = points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
    return (name && held.length > 1 ? name + " " : "") + show(near[1]);
  }).join(", ");
  const newest = () => says(last), caption = element("figcaption"), now = element("span", newest());
  svg.setAttribute("aria-label", `${title} over ${last} steps, now ${newest()}`);
  caption.append(element("b", title), now);
  const cross = make("line", {class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
  svg.append(cross);
  svg.addEventListener("pointermove", event => {
    const area = svg.getBoundingClientRect(), place = (event.clientX - area.left) / area.width * WIDTH;
    const step = Math.round(first + (place - LEFT) / (WIDTH - LEFT - RIGHT) * (last - first));
    if (step < first || step > last) return;
    cross.setAttribute("x1", x(step)); cross.setAttribute("x2", x(step)); cross.setAttribute("visibility", "visible");
    now.textContent = `step ${step}: ${says(step)}`;
  });
  svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); now.textContent = newest(); });
  box.replaceChildren(caption, svg);
}

function table() {
  $("evaluated").hidden = !evals.length;
  document.querySelector("#evaluated tbody").replaceChildren(...evals.map(row => {
    const line = element("tr", "", row.name.startsWith("siri-low") ? "low" : row.name.startsWith("siri-high") ? "high" : "");
    const cells = [row.step, row.accuracy, row.tokens_mean, row.truncation_rate];
    const shown = [String, percent, figure, percent];
    line.append(element("th", row.name), ...cells.map((value, index) => element("td", value === undefined ? "-" : shown[index](value))));
    return line;
  }));
}

function since(seconds) {
  if (seconds === null) return "";
  if (seconds < 90) return `, ${Math.round(seconds)} s ago`;
  return seconds < 5400 ? `, ${Math.round(seconds / 60)} min ago` : `, ${(seconds / 3600).toFixed(1)} h ago`;
}

async function ask(path) {
  const answer = await fetch(path, {cache: "no-store"});
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  const found = await answer.json();
  if (found && found.error) throw new Error(found.error);
  return found;
}

async function follow() {
  try {
    const after = rows.length ? rows[rows.length - 1].step : "";
    const data = await ask(`data?after=${after}&mark=${mark}`);
    const changed = data.whole || data.rows.length || JSON.stringify(data.evals) !== JSON.stringify(evals);
    rows = data.whole ? data.rows : rows.concat(data.rows);
    evals = data.evals; mark = data.mark;
    $("title").textContent = data.title; $("subtitle").textContent = data.subtitle;
    document.title = `${data.title}, live`;
    const done = rows.length ? rows[rows.length - 1].step + 1 : 0;
    $("done").max = Math.max(data.steps || done, 1); $("done").value = done;
    $("state").textContent = `step ${done.toLocaleString("en")}${data.steps ? " of " + data.steps.toLocaleString("en") : ""}${since(data.age_s)}`;
    $("none").hidden = $("legend").hidden = false;
    $(rows.length ? "none" : "legend").hidden = true;
    if (changed) {
      if (rows.length) CHARTS.forEach((chart, index) => draw($("charts").children[index], chart));
      table();
    }
    $("lines").hidden = !data.log.length; $("log").textContent = data.log.join("\n");
    $("fault").hidden = true;
    await list();
  } catch (error) {
    $("fault").textContent = error instanceof TypeError ? "the server does not answer; it was stopped, or is out of reach" : error.message;
    $("fault").hidden = false;
  }
  setTimeout(follow, EVERY_MS);
}

async function list() {
  const names = await ask("samples");
  $("responses").hidden = !names.length;
  if (names.join("\n") === files) return;
  const first = !files;
  files = names.join("\n");
  const chosen = first ? "" : $("file").value;
  $("file").replaceChildren(...names.map(name => new Option(name, name)));
  $("file").value = names.includes(chosen) ? chosen : names.find(name => name.startsWith("eval-")) || names[0] || "";
  if ($("file").value !== chosen) await read();
}

let responses = [];
async function read() {
  opened = new Set();
  responses = $("file").value ? await ask(`samples/${encodeURIComponent($("file").value)}`) : [];
  choose();
}

function choose() {
  const fits = {all: () => true, right: one => one.score >= 1, wrong: one => one.score < 1, cut: one => one.truncated}[$("which").value];
  const shown = responses.map((one, index) => [one, index]).filter(([one]) => fits(one));
  if ($("longest").checked) shown.sort((a, b) => b[0].tokens - a[0].tokens);
  $("count").textContent = `${shown.length} of ${responses.length} responses that were taken from the file`;
  $("list").replaceChildren(...shown.map(([one, index]) => {
    const box = element("details"), about = element("p", "", "note");
    box.open = opened.has(index);
    box.addEventListener("toggle", () => box.open ? opened.add(index) : opened.delete(index));
    const facts = `problem ${one.prompt_number}, gold ${one.gold}, ${one.tokens.toLocaleString("en")} tokens, score ${figure(one.score)}`;
    about.textContent = `answered ${one.extracted === null ? "nothing to compare" : one.extracted}; mean log-prob ${figure(one.logp_mean)}; `
      + `weights after ${one.weights} steps${one.trained ? "" : "; not trained on"}`;
    box.append(element("summary", facts + (one.truncated ? ", cut" : "")), element("pre", one.prompt, "said"), about, element("pre", one.text, "said"));
    return box;
  }));
}

$("charts").replaceChildren(...CHARTS.map(() => { const box = element("figure"); box.hidden = true; return box; }));
$("file").addEventListener("change", () => read().catch(error => { $("fault").textContent = error.message; $("fault").hidden = false; }));
for (const id of ["which", "longest"]) $(id).addEventListener("change", choose);
follow();
