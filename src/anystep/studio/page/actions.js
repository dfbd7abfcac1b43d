// What can be done with the picture on the stage.

import { asCommand, asPython } from "./copy.js";
import { $, make, say } from "./dom.js";
import * as film from "./film.js";
import { restore, setSeed, setStart, sourceOf } from "./form.js";
import * as gallery from "./gallery.js";
import { fileName, fileOf } from "./picture.js";
import * as stage from "./stage.js";
import * as wipe from "./wipe.js";

const ACTIONS = {
  "Trajectory": (picture) => film.begin(picture, stage.asked(), gallery.add),
  "Compare": (picture, button) => {
    wipe.pin(wipe.isPinned() ? null : picture);
    button.setAttribute("aria-pressed", wipe.isPinned());
    say(wipe.isPinned() ? "Choose or draw another picture: of other steps, other settings, another model." : "");
    stage.show(picture);
  },
  "Use settings": (picture) => {
    restore(picture.fields);
    setSeed(picture.seed);
    say((picture.warnings ?? []).join("; "));
  },
  "Reuse seed": (picture) => setSeed(picture.seed),
  "Start from it": async (picture) => {
    await setStart(new File([await fileOf(picture)], fileName(picture), { type: "image/png" }));
    say("The next pictures begin with this one.");
  },
  "Copy command": (picture) => copy(asCommand(picture, sourceOf(picture.model))),
  "Copy Python": (picture) => copy(asPython(picture, sourceOf(picture.model))),
  "Download": async (picture) => {
    const link = make("a", { href: URL.createObjectURL(await fileOf(picture)), download: fileName(picture) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  },
};

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say(text); // the browser lets no page copy: it can be selected
  }
}

/** The buttons. */
export function open() {
  $("actions").replaceChildren(...Object.entries(ACTIONS).map(([name, act]) => {
    const button = make("button", { type: "button", textContent: name });
    button.onclick = () => Promise.resolve(act(stage.current(), button)).catch((error) => say(error.message, true));
    return button;
  }));
}
