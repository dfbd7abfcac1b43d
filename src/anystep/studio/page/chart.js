// Curves as SVG: lines, with bands where a figure has an interval.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 260, 52, 16, 12, 34];

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const number = (value) =>
  value === 0 ? "0" : Math.abs(value) >= 10_000 ? `${+(value / 1000).toPrecision(3)}k` : String(+value.toPrecision(3));

/** Four or so round numbers from one to another. */
function ticks(low, high, isLog) {
  if (isLog && high / low >= 8) {
    const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high));
    const powers = Array.from({ length: Math.max(0, last - first + 1) }, (_, place) => 10 ** (first + place));
    if (powers.length >= 2) return powers;
  }
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(value);
  return found;
}

/**
 * A chart of `series`, each { name, points: [[x, y, low?, high?]] }. `at` are the places of x that are labelled,
 * `isLog` says which axes are logarithmic.
 */
export function chart(series, { label, xName, at = null, isLog = {} }) {
  const points = series.flatMap((each) => each.points);
  const xs = points.map(([x]) => x);
  const ys = points.flatMap(([, ...values]) => values).filter((y) => y !== null && (!isLog.y || y > 0));
  if (!ys.length) return null;
  const scale = (values, from, to, log) => {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
    const by = log ? Math.log : (each) => each;
    const place = (value) => from + ((by(value) - by(low)) / (by(high) - by(low))) * (to - from);
    return Object.assign(place, { low, high });
  };
  const x = scale(xs, LEFT, WIDTH - RIGHT, isLog.x);
  const y = scale(ys, HEIGHT - BOTTOM, TOP, isLog.y);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
  for (const value of ticks(y.low, y.high, isLog.y)) {
    svg.append(
      draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "rule" }),
      draw("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)),
    );
  }
  for (const value of at ?? ticks(x.low, x.high, isLog.x)) {
    svg.append(draw("text", { x: x(value), y: HEIGHT - 14, "text-anchor": "middle" }, number(value)));
  }
  svg.append(draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 1, "text-anchor": "end" }, xName));
  series.forEach(({ points: own }, place) => {
    const shown = own.filter(([, value]) => value !== null && (!isLog.y || value > 0));
    const band = shown.filter(([, , low, high]) => low != null && high != null && (!isLog.y || low > 0));
    if (band.length > 1) {
      const edge = [...band.map((each) => [each[0], each[3]]), ...band.toReversed().map((each) => [each[0], each[2]])];
      svg.append(draw("polygon", { points: edge.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), class: `band of-${place % 6}` }));
    }
    svg.append(draw("polyline", { points: shown.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), class: `line of-${place % 6}` }));
    if (shown.length <= 12) shown.forEach(([a, b]) => svg.append(draw("circle", { cx: x(a), cy: y(b), r: 3, class: `dot of-${place % 6}` })));
  });
  return svg;
}

/** The names of the curves, each in its colour. */
export function legend(names) {
  const list = document.createElement("ul");
  list.className = "legend";
  names.forEach((name, place) => {
    const item = document.createElement("li");
    item.className = `of-${place % 6}`;
    item.textContent = name;
    list.append(item);
  });
  return list;
}
