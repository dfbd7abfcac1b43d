// The gallery: pictures that are on disk, the latest first, those of one noise together.

import { ask, askJSON } from "./api.js";
import { $, make, say } from "./dom.js";
import { alt, kept } from "./picture.js";

const AT_ONCE = 120;
const SAME = ["prompt", "model", "seed", "size", "guidance", "guidance_interval", "stochasticity", "strength", "finish_after"];
let onChoose = () => {};
let last = null; // name of the earliest picture that is shown

const keyOf = (picture) => JSON.stringify(SAME.map((name) => picture.fields[name] ?? null));

/** Show what there is; `choose` is called with the pictures of one noise. Returns the latest ones. */
export async function open(choose) {
  onChoose = choose;
  $("more").onclick = () => more().catch((error) => say(error.message, true));
  await more();
  return $("gallery").firstElementChild?.pictures;
}

async function more() {
  const found = await askJSON(`/studio/gallery?count=${AT_ONCE}${last ? `&before=${encodeURIComponent(last)}` : ""}`);
  for (const picture of found.map(kept)) {
    last = picture.kept;
    join($("gallery").lastElementChild, picture) || $("gallery").append(item(picture));
  }
  $("more").hidden = found.length < AT_ONCE;
}

/** Put one in that was just drawn. */
export function add(picture) {
  join($("gallery").firstElementChild, picture) || $("gallery").prepend(item(picture));
}

/** Put a picture with those of its noise, if they are these. */
function join(element, picture) {
  if (!element || keyOf(element.pictures[0]) !== keyOf(picture)) return false;
  if (element.pictures.some((each) => each.steps === picture.steps)) return false;
  element.pictures = [...element.pictures, picture].sort((one, other) => other.steps - one.steps);
  show(element);
  return true;
}

function item(picture) {
  const open = make("button", { type: "button" }, make("img", { loading: "lazy" }), make("span", { className: "count" }));
  const remove = make("button", { type: "button", className: "remove", textContent: "×" });
  const element = make("li", { pictures: [picture] }, open, remove);
  open.onclick = () => onChoose(element.pictures);
  remove.onclick = async () => {
    try {
      for (const { kept: name } of element.pictures) await ask(`/studio/gallery/${name}`, { method: "DELETE" });
      element.remove();
    } catch (error) {
      say(error.message, true);
    }
  };
  show(element);
  return element;
}

/** The picture of the most steps, and how many there are. */
function show(element) {
  const [picture, ...others] = element.pictures;
  Object.assign(element.querySelector("img"), { src: picture.url, alt: alt(picture) });
  element.querySelector(".count").textContent = others.length ? others.length + 1 : "";
  element.querySelector(".remove").setAttribute("aria-label", `Delete ${alt(picture)}`);
}
