// The page begins here.

import * as actions from "./actions.js";
import { askJSON } from "./api.js";
import { $, say } from "./dom.js";
import { cancel, isDrawing } from "./drawing.js";
import * as drop from "./drop.js";
import * as film from "./film.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as stage from "./stage.js";
import * as watch from "./watch.js";

async function draw(what) {
  if (!$("prompt").value.trim()) {
    say("Say what to draw first.", true);
    return $("prompt").focus();
  }
  await what();
}

/** Show the training view, or that which draws. */
function view(isWatching) {
  const hash = isWatching ? "#training" : "";
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname);
  $("watch").hidden = !isWatching;
  $("draw").hidden = isWatching;
  $("model").closest("label").hidden = isWatching;
  $("to-watch").setAttribute("aria-current", isWatching ? "page" : "false");
  $("to-draw").setAttribute("aria-current", isWatching ? "false" : "page");
  if (isWatching) watch.open().catch((error) => say(error.message, true));
  else watch.close();
}

async function begin() {
  form.open(await askJSON("/studio/models"), () => draw(stage.drawForm));
  stage.open((picture) => {
    $("actions").hidden = !picture;
    film.follow(picture);
  }, gallery.add);
  actions.open();
  film.open();
  drop.open((file, told) => {
    const [width, height] = told.size.split("x").map(Number);
    const { warnings, steps, nfe, n, ...fields } = told;
    stage.put([{ ...fields, fields, steps: steps[0], nfe: nfe[0], width, height, blob: file, url: URL.createObjectURL(file), warnings }]);
  });
  $("to-draw").onclick = () => view(false);
  $("to-watch").onclick = () => view(true);
  addEventListener("hashchange", () => view(location.hash === "#training"));
  $("form").onsubmit = (event) => {
    event.preventDefault();
    draw(stage.drawForm);
  };
  $("cancel").onclick = cancel;
  $("four").onclick = () => draw(stage.drawFour);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isDrawing()) cancel();
  });
  const latest = await gallery.open((pictures) => {
    stage.put(pictures);
    scrollTo({ top: 0, behavior: "smooth" });
  });
  if (latest) stage.put(latest);
  if (location.hash === "#training") view(true);
  document.body.dataset.ready = "true";
}

begin().catch((error) => say(error.message, true));
