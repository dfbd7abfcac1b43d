// The training view: runs as they go on, with curves by interval and sample grids, and reports of comparisons.

import { askJSON } from "./api.js";
import { chart, legend, number } from "./chart.js";
import { $, make } from "./dom.js";

const CURVES = { residual_diffusion: "no interval (t = r)", residual_short: "short intervals", residual_long: "long intervals", loss: "loss" };
let stream = null;
const figures = make("div");
let grid = null; // the sample grid that is shown; the latest one for null

/** Show what there is; called whenever the view is opened. */
export async function open() {
  const found = await askJSON("/studio/runs");
  const chosen = $("runs").querySelector("[aria-current=true]")?.dataset.name;
  $("runs").replaceChildren(...found.map((each) => {
    const button = make("button", { type: "button", "data-name": `${each.kind} ${each.name}` }, each.name,
      make("span", { textContent: each.kind === "run" ? ago(each.seconds_since) : "comparison" }));
    button.onclick = () => choose(each, button);
    return make("li", {}, button);
  }));
  const first = [...$("runs").querySelectorAll("button")].find((each) => each.dataset.name === chosen) ?? $("runs").querySelector("button");
  if (first) first.click();
  else $("watched").replaceChildren(make("p", { className: "hint", textContent: "No run is watched: start with anystep studio --runs FOLDER." }));
}

export function close() {
  stream?.close();
  stream = null;
}

const ago = (seconds) => (seconds < 60 ? "just now" : `${left(seconds)} ago`);

function left(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return minutes < 48 * 60 ? `${+(minutes / 60).toFixed(1)} h` : `${Math.round(minutes / 1440)} days`;
}

function choose({ name, kind }, button) {
  close();
  grid = null;
  for (const each of $("runs").querySelectorAll("button")) each.setAttribute("aria-current", each === button);
  figures.replaceChildren();
  $("watched").replaceChildren(make("h2", { textContent: name }), figures);
  if (kind === "comparison") {
    askJSON(`/studio/comparison?name=${encodeURIComponent(name)}`).then((told) => {
      if (button.getAttribute("aria-current") === "true") compare(name, told); // else another was chosen meanwhile
    }, fail);
    return;
  }
  stream = new EventSource(`/studio/run?name=${encodeURIComponent(name)}`);
  stream.addEventListener("run", (event) => show(name, JSON.parse(event.data)));
  stream.addEventListener("gone", (event) => {
    close();
    fail(JSON.parse(event.data));
  });
}

const fail = ({ message }) => $("watched").append(make("p", { className: "status bad", textContent: message }));

function show(name, told) {
  const facts = [
    ["step", told.steps ? `${number(told.step)} of ${number(told.steps)}` : number(told.step)],
    ["images a second", told.images_per_second == null ? "–" : number(told.images_per_second)],
    told.step >= told.steps ? ["state", "finished"] : ["time left", told.seconds_left == null ? "–" : left(told.seconds_left)],
    ["last written", ago(told.seconds_since)],
  ];
  const progress = make("progress", { max: told.steps ?? 1, value: told.steps ? told.step : 0, "aria-label": "Progress" });
  const names = Object.keys(told.curves);
  const series = names.map((each) => ({ name: CURVES[each], points: told.curves[each] }));
  const curves = chart(series, { label: `Residual of ${name} by interval over ${number(told.step)} steps`, xName: "step", isLog: { y: true } });
  figures.replaceChildren(
    make("dl", { className: "facts" }, ...facts.map(([term, text]) =>
      make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: text })))),
    ...(told.steps ? [progress] : []),
    ...(curves ? [make("h3", { textContent: "Residual by interval" }), legend(series.map((each) => each.name)), curves] : []),
    ...(told.bins ? [make("h3", { textContent: "Residual over t (down) and r (across), latest" }), heat(told.bins)] : []),
  );
  const shown = $("watched").querySelector(".samples");
  if (!told.grids.length || shown?.dataset.grids === String(told.grids)) return; // whose slider may be held
  shown?.remove();
  $("watched").append(samples(name, told.grids));
}

/** The residual by bins of t and r, as shades with figures. */
function heat(bins) {
  const values = bins.flat().filter((each) => each !== null);
  const most = Math.max(...values);
  const rows = bins.map((row) => make("tr", {}, ...row.map((value) => {
    const cell = make("td", { textContent: value === null ? "" : number(value) });
    if (value !== null) cell.style.setProperty("--share", `${Math.round((60 * value) / most)}%`);
    return cell;
  })));
  return make("table", { className: "heat" }, make("tbody", {}, ...rows));
}

/** The sample grids over time, with a slider through them. */
function samples(name, grids) {
  const image = make("img", { className: "grid" });
  const range = make("input", { type: "range", min: 0, max: grids.length - 1, "aria-label": "Sample grid" });
  const told = make("output");
  const move = () => {
    const file = grids[Number(range.value)];
    const step = Number(file.slice(5, 13));
    Object.assign(image, { src: `/studio/grid?name=${encodeURIComponent(name)}&file=${file}`, alt: `Samples after ${step} steps` });
    told.textContent = `after ${number(step)} steps`;
    range.setAttribute("aria-valuetext", told.textContent);
    grid = Number(range.value) === grids.length - 1 ? null : file;
  };
  range.value = grids.includes(grid) ? grids.indexOf(grid) : grids.length - 1;
  range.oninput = move;
  move();
  return make("div", { className: "samples", "data-grids": String(grids) },
    make("h3", { textContent: "Samples" }), make("div", { className: "through" }, range, told), image);
}

function compare(name, told) {
  const names = told.models.map((each) => each.name);
  const parts = [];
  for (const [metric, better] of Object.entries(told.better)) {
    const series = told.models.map((model) => ({ name: model.name, points: model.points[metric] }));
    const steps = [...new Set(series.flatMap((each) => each.points.map(([count]) => count)))];
    const title = `${metric.replaceAll("_", " ")}, ${better === "nearest 1" ? better : `${better} is better`}`;
    const curves = chart(series, { label: `${title}, by steps`, xName: "steps", at: steps, isLog: { x: true } });
    const head = make("tr", {}, make("th", { textContent: "steps" }), ...steps.map((count) => make("th", { textContent: count, scope: "col" })));
    const cell = ([, value, low, high]) => (value === null ? "–" : `${number(value)} ± ${low === null || high === null ? "–" : number((high - low) / 2)}`);
    const rows = series.map((each) => make("tr", {}, make("th", { textContent: each.name, scope: "row" }),
      ...each.points.map((point) => make("td", { textContent: cell(point) }))));
    const table = make("details", {}, make("summary", { textContent: "Figures" }),
      make("div", { className: "wide", tabIndex: 0 }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
    parts.push(make("h3", { textContent: title }), ...(curves ? [curves] : []), table);
  }
  $("watched").replaceChildren(make("h2", { textContent: name }), legend(names), ...parts,
    make("p", { className: "note", textContent: `Bands are 95 % intervals; ${told.samples} images at each number of steps.${told.command ? ` ${told.command}` : ""}` }));
}
