// Two pictures over each other, with an edge that is moved between them.

import { make } from "./dom.js";
import { alt, cost } from "./picture.js";

const TOLD = { model: (each) => each, prompt: (each) => `“${each}”`, seed: (each) => `seed ${each}`, size: (each) => each.replace("x", " × "),
  guidance: (each) => `guidance ${each}`, stochasticity: (each) => `stochasticity ${each ?? 0}`, plan: (each) => `${each} plan` };
let pinned = null;
let place = 50;

export const isPinned = () => pinned !== null;
export const isCompared = (picture) => pinned !== null && picture !== null && picture.url !== pinned.url;

/** Compare what is shown from now on with a picture; with none for null. */
export function pin(picture) {
  pinned = picture;
  place = 50;
}

/** What one picture is, with whatever sets it apart from another. */
function label(picture, other) {
  const apart = Object.keys(TOLD).filter((name) => (picture.fields[name] ?? null) !== (other.fields[name] ?? null));
  return [cost(picture).split(" · ").slice(0, 2).join(" · "), ...apart.map((name) => TOLD[name](picture.fields[name]))].join(" · ");
}

/** The pinned picture at the left of the edge, this one at the right. */
export function figure(picture) {
  const under = make("img", { src: picture.url, alt: alt(picture), width: picture.width, height: picture.height });
  const over = make("img", { src: pinned.url, alt: alt(pinned), className: "over" });
  const edge = make("span", { className: "edge" });
  const range = make("input", { type: "range", min: 0, max: 100, value: place, "aria-label": "Where one picture ends and the other begins" });
  const move = () => {
    place = Number(range.value);
    over.style.clipPath = `inset(0 ${100 - place}% 0 0)`;
    edge.style.left = `${place}%`;
  };
  range.oninput = move;
  move();
  const labels = make("div", { className: "sides" },
    make("span", { textContent: label(pinned, picture) }), make("span", { textContent: label(picture, pinned) }));
  const box = make("div", { className: "box" }, under, over, edge, range);
  return make("figure", { className: "one wipe" }, box, labels);
}
