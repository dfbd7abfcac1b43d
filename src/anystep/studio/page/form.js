// The form: what it holds as fields of a request, what a model offers it, and what it was when the page was left.

import { $, make } from "./dom.js";

const STORED = "anystep-form";
export const STOPS = [1, 2, 4, 8, 16, 32, 64, 128];

/** What the pictures begin with besides noise: { name, base64, url }, or null. */
export let start = null;
let models = [];

export const model = () => models.find((each) => each.name === $("model").value) ?? models[0];
export const sourceOf = (name) => (models.find((each) => each.name === name) ?? models[0]).source;
export const stop = () => STOPS[Number($("slider").value)];
export const isLocked = () => $("lock").getAttribute("aria-pressed") === "true";

/** The fields that are drawn with. */
export function fields() {
  const [least, most] = model().times;
  const [low, high] = [$("low").valueAsNumber, $("high").valueAsNumber].map((each, end) =>
    Number.isNaN(each) ? [least, most][end] : each);
  const found = {
    prompt: $("prompt").value.trim(),
    model: model().name,
    seed: Number($("seed").value),
    size: $("size").value,
    guidance: Number($("guidance").value),
    plan: $("plan").value,
  };
  if (low > least || high < most) found.guidance_interval = [low, high];
  if (Number($("stochasticity").value) > 0) found.stochasticity = Number($("stochasticity").value);
  if (start) Object.assign(found, { strength: Number($("strength").value), start: start.name });
  return found;
}

/** Put fields into the form; what is not among them is as the model has it. */
export function restore(given) {
  if (given.model && models.some((each) => each.name === given.model) && given.model !== model().name) {
    $("model").value = given.model;
    offer();
  }
  const { times, guidance, strength } = model();
  if (given.prompt !== undefined) $("prompt").value = given.prompt;
  if (given.seed !== undefined) $("seed").value = given.seed;
  if (given.size) {
    if (![...$("size").options].some((each) => each.value === given.size)) {
      $("size").append(make("option", { value: given.size, textContent: given.size.replace("x", " × ") }));
    }
    $("size").value = given.size;
  }
  $("guidance").value = given.guidance ?? guidance;
  [$("low").value, $("high").value] = given.guidance_interval ?? times;
  $("stochasticity").value = given.stochasticity ?? 0;
  $("plan").value = given.plan ?? "model";
  $("strength").value = given.strength ?? strength;
  show();
}

export function setSeed(seed, lock = true) {
  $("seed").value = seed;
  $("lock").setAttribute("aria-pressed", lock);
  show();
}

export const dice = () => setSeed(crypto.getRandomValues(new Uint32Array(1))[0], isLocked());

/** Begin with a picture's file, or with noise alone. */
export async function setStart(file) {
  if (start) URL.revokeObjectURL(start.url);
  start = null;
  if (file) {
    const url = URL.createObjectURL(file);
    const read = new FileReader();
    const base64 = await new Promise((resolve, fail) => {
      read.onload = () => resolve(read.result.split(",", 2)[1]);
      read.onerror = () => fail(new Error(`${file.name} cannot be read`));
      read.readAsDataURL(file);
    });
    start = { name: file.name, base64, url };
  }
  for (const old of $("start").querySelectorAll("figure")) old.remove();
  if (start) {
    const without = make("button", { type: "button", textContent: "Noise alone", onclick: () => setStart(null) });
    $("start").prepend(make("figure", {}, make("img", { src: start.url, alt: start.name }), without));
  }
  $("start").querySelector("label").hidden = Boolean(start);
  $("strength-label").hidden = !start;
  $("start-file").value = "";
}

/** What the values of the sliders are, and keep it all for when the page is opened again. */
function show() {
  for (const name of ["guidance", "stochasticity", "strength"]) {
    $(`${name}-value`).textContent = Number($(name).value).toFixed(name === "guidance" ? 1 : 2);
  }
  if (Number($("guidance").value) <= 1) $("guidance-value").textContent = "none";
  const { start: _, strength: __, ...kept } = fields();
  localStorage.setItem(STORED, JSON.stringify({ ...kept, stop: $("slider").value, lock: isLocked() }));
}

/** Fill in what the chosen model offers. */
function offer() {
  const { concepts, examples, sizes, times, can_guide: canGuide, plans, max_steps: most } = model();
  $("concepts").replaceChildren(...concepts.map((value) => make("option", { value })));
  $("examples").replaceChildren(...examples.map((textContent) => make("button", { type: "button", textContent })));
  const option = ({ width, height, aspect }) =>
    make("option", { value: `${width}x${height}`, textContent: `${width} × ${height}   ${aspect}` });
  const group = (label, found) => make("optgroup", { label }, ...found.map(option));
  const [trained, others] = [true, false].map((which) => sizes.filter((each) => each.trained === which));
  $("size").replaceChildren(group("● Trained shapes", trained), group("Other shapes", others));
  $("guidance").disabled = !canGuide;
  for (const name of ["low", "high"]) Object.assign($(name), { min: times[0], max: times[1], disabled: !canGuide });
  $("plan").disabled = plans.length === 0;
  $("slider").max = STOPS.filter((each) => each <= most).length - 1;
}

/** Set the form up: for these models, as it was left. `onExample` is called with a prompt that was chosen. */
export function open(found, onExample) {
  models = found;
  $("model").replaceChildren(...models.map(({ name }) => make("option", { value: name, textContent: name })));
  $("model").disabled = models.length === 1;
  let left = {};
  try {
    left = JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch { /* not ours */ }
  offer();
  restore(left);
  if (left.stop) $("slider").value = left.stop;
  $("lock").setAttribute("aria-pressed", left.lock === true);
  show();

  $("model").onchange = () => {
    offer();
    restore({ prompt: $("prompt").value, seed: $("seed").value });
  };
  $("dice").onclick = dice;
  $("lock").onclick = () => setSeed($("seed").value, !isLocked());
  $("seed").oninput = () => setSeed($("seed").value);
  $("start-file").onchange = () => setStart($("start-file").files[0]);
  $("examples").onclick = (event) => {
    if (event.target.tagName !== "BUTTON") return;
    $("prompt").value = event.target.textContent;
    onExample();
  };
  $("settings").addEventListener("input", show);
  $("slider").addEventListener("input", show);
  $("prompt").addEventListener("input", show);
  $("settings").open = !matchMedia("(max-width: 760px)").matches;
}
