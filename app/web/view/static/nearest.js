// Beside an unsure answer: the photos of the proof that are most alike, where the owner shows them.

import { job } from "./app.js";
import { find, percent, post, proof } from "./core.js";

export async function show() {
  const current = job;
  const found = await post("nearest", current.upload, current.control.signal).catch(() => []);
  if (current !== job || !found.length) return;
  const heading = document.createElement("p");
  heading.textContent = proof.nearest;
  const list = document.createElement("ul");
  list.append(...found.map(item));
  find("nearest").replaceChildren(heading, list);
  find("nearest").hidden = false;
}

function item({ label, similarity, image }) {
  const [element, picture, name, likeness] = ["li", "img", "bdi", "span"].map((tag) => document.createElement(tag));
  Object.assign(picture, { src: image, alt: "" });
  name.textContent = label;
  likeness.textContent = percent(Math.max(0, similarity));
  element.append(picture, name, likeness);
  return element;
}
