// The page begins here.

import * as actions from "./actions.js";
import { askJSON } from "./api.js";
import { $, say } from "./dom.js";
import { cancel, isDrawing } from "./drawing.js";
import * as drop from "./drop.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as stage from "./stage.js";

function drawOrCancel() {
  if (isDrawing()) return cancel();
  return draw(stage.drawForm);
}

async function draw(what) {
  if (!$("prompt").value.trim()) {
    say("Say what to draw first.", true);
    return $("prompt").focus();
  }
  await what();
}

async function begin() {
  form.open(await askJSON("/studio/models"), () => draw(stage.drawForm));
  stage.open((picture) => { $("actions").hidden = !picture; }, gallery.add);
  actions.open(stage.current);
  drop.open((file, told) => {
    const [width, height] = told.size.split("x").map(Number);
    const { warnings, steps, nfe, n, ...fields } = told;
    stage.put([{ ...fields, fields, steps: steps[0], nfe: nfe[0], width, height, blob: file, url: URL.createObjectURL(file), warnings }]);
  });
  $("form").onsubmit = (event) => {
    event.preventDefault();
    drawOrCancel();
  };
  $("four").onclick = () => draw(stage.drawFour);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isDrawing()) cancel();
  });
  const latest = await gallery.open((pictures) => {
    stage.put(pictures);
    scrollTo({ top: 0, behavior: "smooth" });
  });
  if (latest) stage.put(latest);
  document.body.dataset.ready = "true";
}

begin().catch((error) => say(error.message, true));
