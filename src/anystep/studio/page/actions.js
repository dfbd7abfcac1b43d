// What can be done with the picture on the stage.

import { asCommand, asPython } from "./copy.js";
import { $, make, say } from "./dom.js";
import { restore, setSeed, setStart, sourceOf } from "./form.js";
import { fileName, fileOf } from "./picture.js";

const ACTIONS = {
  "Use these settings": (picture) => {
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

/** The buttons; more of them by their names. `current` is the picture they are for. */
export function open(current, more = {}) {
  $("actions").replaceChildren(...Object.entries({ ...more, ...ACTIONS }).map(([name, act]) => {
    const button = make("button", { type: "button", textContent: name });
    button.onclick = () => Promise.resolve(act(current(), button)).catch((error) => say(error.message, true));
    return button;
  }));
}
