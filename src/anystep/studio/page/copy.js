// The same picture by the command line and by Python.

const shell = (text) => (/^[\w.,:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const python = (text) => JSON.stringify(text).replaceAll("\u2028", "\\u2028").replaceAll("\u2029", "\\u2029");

const FLOATS = new Set(["guidance", "guidance_interval", "stochasticity"]);
const float = (value) => (Number.isInteger(value) ? value.toFixed(1) : value);

/** Options that are not the model's own, under the names of the command line and of Python alike. */
function options(picture) {
  const { fields } = picture;
  const [width, height] = fields.size.split("x").map(Number);
  const given = [["seed", [fields.seed]], ["size", [width, height]], ["guidance", [fields.guidance]]];
  if (fields.guidance_interval) given.push(["guidance_interval", fields.guidance_interval]);
  if (fields.stochasticity != null) given.push(["stochasticity", [fields.stochasticity]]);
  if (fields.plan) given.push(["plan", [fields.plan]]);
  for (const name of ["rope_scaling", "key_grid"]) if (fields[name] != null) given.push([name, [fields[name]]]);
  if (fields.finish_after != null) given.push(["finish_after", [fields.finish_after]]);
  return given;
}

/** `anystep generate` of a picture; `source` is what its model was loaded from. */
export function asCommand(picture, source) {
  const { prompt } = picture.fields;
  const words = ["--model", shell(source), "--steps", picture.steps];
  for (const [name, values] of options(picture)) {
    const told = name === "size" ? [values.join("x")] : values;
    words.push(`--${name.replaceAll("_", "-")}`, ...told.map((value) => shell(String(value))));
  }
  if (picture.fields.start) words.push("--image", shell(picture.fields.start), "--strength", picture.fields.strength);
  const said = prompt.startsWith("-") ? [...words, "--", shell(prompt)] : [shell(prompt), ...words];
  return ["anystep", "generate", ...said].join(" ");
}

/** Lines of Python that draw a picture. */
export function asPython(picture, source) {
  const said = options(picture).map(([name, values]) => {
    const told = values.map((value) => (typeof value === "string" ? python(value) : FLOATS.has(name) ? float(value) : value));
    return `${name}=${told.length > 1 ? `(${told.join(", ")})` : told[0]}`;
  });
  const lines = ["import anystep"];
  if (picture.fields.start) {
    lines.push("from PIL import Image");
    said.push(`image=Image.open(${python(picture.fields.start)})`, `strength=${picture.fields.strength}`);
  }
  return [
    ...lines, "", `model = anystep.load(${python(source)})`,
    `image = model(${python(picture.fields.prompt)}, steps=${picture.steps}, ${said.join(", ")})[0]`,
    'image.save("picture.png")', "",
  ].join("\n");
}
