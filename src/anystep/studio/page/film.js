// The trajectory: what the network takes the image to be at every transition, and the end in one step from any of them.

import { $, make, say, stepsLabel } from "./dom.js";
import { draw, isDrawing } from "./drawing.js";
import { alt, drawn, imageURL } from "./picture.js";
import * as stage from "./stage.js";

let base = null; // the picture whose trajectory it is, and what it was asked for with
let frames = []; // of each transition: its image, and the picture of the jump from there once it is drawn
let place = 0;

/** Show the trajectory of the picture on the stage. */
export async function begin(picture, { image }, onKept) {
  close();
  base = { picture, image, onKept };
  frames = [];
  $("frames").replaceChildren();
  $("film").hidden = false;
  await ask({}, {
    progress: ({ transition, transitions, image: estimate }) => {
      if (base?.picture !== picture) return; // it was closed meanwhile
      add(estimate ? imageURL(estimate) : picture.url, transition, transitions);
    },
  }, `Drawing the ${picture.made ?? picture.steps} transitions again`);
  $("scrub").focus({ preventScroll: true });
}

export function close() {
  $("film").hidden = true;
  base = null;
}

/** Whether a picture is the one, or the end of a jump from its trajectory. */
const belongs = (picture) => picture !== null && (picture === base.picture || frames.some((each) => each.jump === picture));

/** Close it when another picture is on the stage. */
export function follow(picture) {
  if (base && !belongs(picture)) close();
}

async function ask(changes, on, saying) {
  const { picture, image } = base;
  say(`${saying} …`);
  $("cancel").hidden = false;
  const { finish_after: _, ...fields } = picture.fields;
  const problems = [];
  on.failed = (told) => problems.push(told.error.message);
  const previews = changes.finish_after === undefined ? null : 0;
  try {
    const whole = await draw({ ...fields, ...changes }, [picture.steps], { image, previews, keep: previews === 0 }, on);
    if (!isDrawing()) say(problems[0] ?? (whole ? "" : "Cancelled"), problems.length > 0);
  } finally {
    if (!isDrawing()) $("cancel").hidden = true;
  }
}

function add(url, transition, transitions) {
  const image = make("img", { src: url, alt: "" });
  const button = make("button", { type: "button", "aria-label": `After ${transition} of ${transitions} transitions` }, image);
  button.onclick = () => scrub(transition - 1);
  const element = make("li", {}, button, make("span", { className: "jump" }));
  frames.push({ url, element, transition, transitions, jump: null });
  $("frames").append(element);
  $("scrub").max = frames.length - 1;
  scrub(frames.length - 1);
}

function scrub(index) {
  place = index;
  $("scrub").value = index;
  for (const { element } of frames) element.classList.remove("here");
  const { url, element, transition, transitions } = frames[index];
  element.classList.add("here");
  element.scrollIntoView({ block: "nearest", inline: "center" });
  $("jump").disabled = transition === transitions;
  $("jump").textContent = `To the end from here: ${stepsLabel(transition + 1)}`;
  const said = `After ${transition} of ${transitions} transitions`;
  $("scrub").setAttribute("aria-valuetext", said);
  if (transition === transitions) stage.show(base.picture);
  else stage.preview(url, base.picture, `${said}: what the image is taken to be`);
}

async function jump() {
  const frame = frames[place];
  const finished = { ...base.picture.fields, finish_after: frame.transition };
  const { onKept } = base;
  await ask({ finish_after: frame.transition }, {
    drawn: (told) => {
      frame.jump = drawn(told, finished);
      const button = make("button", { type: "button", title: alt(frame.jump) }, make("img", { src: frame.jump.url, alt: alt(frame.jump) }));
      button.onclick = () => stage.show(frame.jump);
      frame.element.querySelector(".jump").replaceChildren(button);
      stage.show(frame.jump);
      if (told.kept) onKept(frame.jump);
    },
  }, `To the end after ${frame.transition}`);
}

export function open() {
  $("scrub").oninput = () => scrub(Number($("scrub").value));
  $("jump").onclick = () => jump().catch((error) => say(error.message, true));
  $("film-close").onclick = () => {
    stage.show(base.picture);
    close();
  };
}
