// A picture: what the server has told of it, and the fields that it was asked for with.

import { duration, stepsLabel } from "./dom.js";

const blobOf = (base64) => new Blob([Uint8Array.from(atob(base64), (each) => each.charCodeAt(0))], { type: "image/png" });

/** One that was just drawn. */
export function drawn(told, fields) {
  const { image, ...rest } = told;
  const blob = blobOf(image);
  return { ...rest, blob, url: URL.createObjectURL(blob), fields: { ...fields, seed: told.seed } };
}

/** One of the gallery. */
export function kept(told) {
  const { name, steps, nfe, warnings, n, ...fields } = told;
  const [width, height] = fields.size.split("x").map(Number);
  return {
    ...fields, kept: name, url: `/studio/gallery/${name}`, steps: steps[0], nfe: nfe[0], width, height, fields, warnings,
  };
}

export const imageURL = (base64) => URL.createObjectURL(blobOf(base64));

export function alt(picture) {
  return `${picture.prompt}, ${stepsLabel(picture.steps)}, seed ${picture.seed}`;
}

/** Steps, NFE and time. */
export function cost(picture) {
  const said = [stepsLabel(picture.made ?? picture.steps), `${picture.nfe} NFE`];
  if (picture.milliseconds !== undefined) said.push(duration(picture.milliseconds));
  return said.join(" · ");
}

/** The content of its file, which holds its settings. */
export const fileOf = async (picture) => picture.blob ?? (await fetch(picture.url)).blob();

export const fileName = (picture) => picture.kept ?? `anystep-seed-${picture.seed}-steps-${picture.steps}.png`;
