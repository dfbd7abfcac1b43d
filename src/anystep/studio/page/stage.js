// The stage: one picture large, and the same noise in all numbers of steps below the slider.

import { $, make, say, stepsLabel } from "./dom.js";
import { cancel, draw, isDrawing } from "./drawing.js";
import { STOPS, dice, fields, isLocked, start, stop } from "./form.js";
import { alt, cost, drawn } from "./picture.js";
import * as wipe from "./wipe.js";

let ground = null; // fields of what is on the stage, but for the steps, and the image to start from
let pictures = new Map(); // by the number of steps
let cells = new Map(); // elements of the strip, by the number of steps
let selected = null;
let onSelect = () => {};
let onKept = () => {};

export const current = () => selected;

/** What the pictures on the stage were asked for with: fields, and the image to start from. */
export const asked = () => ground;

/** Set the stage up; `select` is told of the picture that is shown, `keep` of each that the gallery has gained. */
export function open(select, keep) {
  [onSelect, onKept] = [select, keep];
  $("strip").replaceChildren(...STOPS.map((count) => {
    const thumb = make("span", { className: "thumb" }, make("span", { className: "bar" }));
    const told = make("span", { className: "told" });
    const button = make("button", { type: "button" }, thumb, make("b", { textContent: count }), told);
    button.setAttribute("aria-label", stepsLabel(count));
    button.onclick = () => moveTo(count);
    const cell = make("li", {}, button);
    cells.set(count, { cell, thumb, told, button, bar: thumb.querySelector(".bar") });
    return cell;
  }));
  $("slider").addEventListener("input", () => moveTo(stop()));
}

/** Put pictures on the stage, the one to show first, whose other numbers of steps can be drawn. */
export function put([picture, ...others], image = null) {
  const { finish_after: _, ...fields } = picture.fields; // other numbers of steps make all their transitions
  clear({ fields, image });
  for (const each of [picture, ...others]) pictures.set(each.steps, each);
  const place = STOPS.findIndex((count) => count >= picture.steps);
  $("slider").value = place < 0 ? STOPS.length - 1 : place;
  refresh();
  show(picture);
}

/** Draw what the form says, in all numbers of steps up to the slider's. */
export async function drawForm() {
  if (!isLocked()) dice();
  clear({ fields: fields(), image: start?.base64 ?? null });
  $("hero").replaceChildren();
  await fill();
}

/** Draw what the form says with four seeds, to choose from. */
export async function drawFour() {
  if (!isLocked()) dice();
  const asked = { fields: fields(), image: start?.base64 ?? null };
  clear(asked);
  const places = [0, 1, 2, 3].map(() => make("button", { type: "button", className: "waiting", disabled: true }));
  const quad = make("div", { className: "quad" }, ...places);
  $("hero").replaceChildren(quad);
  const count = stop();
  await run([count], { n: 4 }, `Drawing four in ${stepsLabel(count)}`, (told) => {
    const picture = drawn(told, ground.fields);
    const place = places[told.index];
    place.replaceChildren(make("img", { src: picture.url, alt: alt(picture) }));
    Object.assign(place, { disabled: false, className: "", title: `seed ${picture.seed}`, onclick: () => put([picture], asked.image) });
    return picture;
  });
}

function clear(next) {
  cancel();
  [ground, pictures] = [next, new Map()];
  const [width, height] = next.fields.size.split("x").map(Number);
  for (const id of ["hero", "strip"]) $(id).style.setProperty("--aspect", width / height);
  show(null);
  refresh();
}

/** Show what there is of a number of steps, and draw what is missing. */
function moveTo(count) {
  $("slider").value = STOPS.indexOf(count);
  if (!ground) return refresh();
  refresh();
  show(pictures.get(count) ?? [...pictures.values()].findLast((each) => each.steps < count) ?? [...pictures.values()][0] ?? null);
  if (!pictures.has(count)) fill();
}

/** Draw all numbers of steps up to the slider's that are missing. */
async function fill() {
  const missing = STOPS.filter((count) => count <= stop() && !pictures.has(count));
  if (!missing.length) return;
  await run(missing, {}, `Drawing in ${missing.length > 1 ? `${missing[0]} to ` : ""}${stepsLabel(missing.at(-1))}`, (told) => {
    const picture = drawn(told, ground.fields);
    pictures.set(told.steps, picture);
    refresh();
    if (told.steps <= stop()) show(picture);
    return picture;
  });
}

/** Draw, with the progress in the strip. */
async function run(steps, options, saying, onDrawn) {
  const count = options.n ?? 1;
  const cellOf = (index) => cells.get(steps[Math.floor(index / count)]);
  const began = ground;
  for (const each of steps) cells.get(each).cell.classList.add("waiting");
  say(`${saying} …`);
  $("cancel").hidden = false;
  const problems = [];
  try {
    const whole = await draw(began.fields, steps, { ...options, image: began.image }, {
      progress: ({ index, transition, transitions }) => {
        cellOf(index).bar.style.width = `${(100 * transition) / transitions}%`;
      },
      drawn: (told) => {
        cellOf(told.index).cell.classList.remove("waiting");
        const picture = onDrawn(told);
        if (told.kept) onKept(picture);
        if (told.unkept) problems.push(told.unkept);
      },
      failed: (told) => {
        cellOf(told.index).cell.classList.remove("waiting");
        problems.push(told.error.message);
      },
    });
    if (began === ground) say(problems[0] ?? (whole ? "" : isDrawing() ? "" : "Cancelled"), problems.length > 0);
  } catch (error) {
    say(error.message, true);
  } finally {
    if (!isDrawing()) {
      $("cancel").hidden = true;
      for (const { cell, bar } of cells.values()) {
        cell.classList.remove("waiting");
        bar.style.width = 0;
      }
    }
  }
}

/** The strip as the pictures are. */
function refresh() {
  for (const [count, { cell, thumb, told, button, bar }] of cells) {
    const picture = pictures.get(count);
    button.setAttribute("aria-current", count === stop());
    button.setAttribute("aria-label", picture ? cost(picture) : stepsLabel(count));
    if (cell.dataset.url === (picture?.url ?? "")) continue;
    cell.dataset.url = picture?.url ?? "";
    thumb.querySelector("img")?.remove();
    told.replaceChildren();
    if (!picture) continue;
    bar.style.width = 0;
    thumb.prepend(make("img", { src: picture.url, alt: "" }));
    const [, nfe, time = ""] = cost(picture).split(" · ");
    told.append(nfe, make("br"), time);
  }
}

/** An image large that is no picture to do something with. */
export function preview(url, { width, height }, caption) {
  selected = null;
  $("hero").replaceChildren(make("figure", { className: "one" }, make("img", { src: url, alt: caption, width, height })));
  $("caption").replaceChildren(caption);
  $("actions").hidden = true;
}

/** One picture large. */
export function show(picture) {
  selected = picture;
  $("caption").replaceChildren();
  if (wipe.isCompared(picture)) {
    $("hero").replaceChildren(wipe.figure(picture));
  } else if (picture) {
    const image = make("img", { src: picture.url, alt: alt(picture), width: picture.width, height: picture.height });
    const figure = make("figure", { className: "one" }, image);
    const old = $("hero").querySelector(".one > img");
    if (old && $("hero").children.length === 1 && old.width / old.height === image.width / image.height) {
      Object.assign(old, { src: image.src, alt: image.alt });
    } else {
      $("hero").replaceChildren(figure);
    }
  }
  if (picture) $("caption").append(cost(picture), make("span", { className: "more", textContent: ` · seed ${picture.seed}` }));
  onSelect(picture);
}
