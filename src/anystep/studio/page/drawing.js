// Draw: one request at a time, whose pictures are told as they come.

import { events } from "./api.js";

const TAB = crypto.randomUUID?.() ?? String(Math.random());
let controller = null;

export const isDrawing = () => controller !== null;

export function cancel() {
  controller?.abort();
  controller = null;
}

/**
 * Draw fields at some numbers of steps. A drawing that runs is cancelled for it.
 *
 * `on` has functions `started`, `progress`, `drawn` and `failed`, each called with what the server tells.
 * Returns whether all was told before it was cancelled. Throws an error in words for the reader.
 */
export async function draw(fields, steps, { image = null, n = 1, keep = true, previews = 0 }, on) {
  if (fields.strength && !image) throw new Error("this was begun with a picture that is not here: drop it to start from");
  cancel();
  const own = (controller = new AbortController());
  const { start, ...asked } = fields;
  delete asked.warnings;
  const body = { fields: { ...asked, n, user: TAB, partial_images: previews }, steps, image, keep };
  if (previews === null) delete body.fields.partial_images;
  try {
    for await (const [name, told] of events("/studio/draw", body, own.signal)) {
      if (own.signal.aborted) return false;
      on[name]?.(told);
    }
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    throw error;
  } finally {
    if (controller === own) controller = null;
  }
}
