// Pictures that are dropped on the page: one of anystep restores its settings, any other is started from.

import { askJSON } from "./api.js";
import { $, say } from "./dom.js";
import { restore, setSeed, setStart } from "./form.js";

/** Put the settings of a PNG into the form. Throws where it has none. */
export async function recall(file) {
  const told = await askJSON("/studio/recall", {
    method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: await file.arrayBuffer(),
  });
  restore(told);
  setSeed(told.seed);
  say(["Settings restored", ...told.warnings].join("; "));
  return told;
}

async function take(file, onRecalled) {
  try {
    onRecalled(file, await recall(file));
  } catch {
    await setStart(file);
    say(`The next pictures begin with ${file.name}.`);
  }
}

/** Listen for them; `onRecalled` is called with a file whose settings were restored, and with these. */
export function open(onRecalled) {
  const tell = (error) => say(error.message, true);
  let inside = 0;
  const over = (by) => {
    inside = by ? inside + by : 0;
    document.body.classList.toggle("over", inside > 0);
  };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    const [file] = event.dataTransfer.files;
    if (!file) return;
    const into = event.target.closest?.("#start") ? setStart(file) : take(file, onRecalled);
    into.catch(tell);
  });
  $("recall-file").onchange = async () => {
    const [file] = $("recall-file").files;
    if (!file) return;
    await recall(file).then((told) => onRecalled(file, told), tell);
    $("recall-file").value = "";
  };
}
