// A few words for elements.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; `data-`, `aria-` and `role` are attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Say something in the line below the prompt; errors stand out. */
export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
export const stepsLabel = (count) => `${count} step${count > 1 ? "s" : ""}`;
