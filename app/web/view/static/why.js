// "Why?": which parts of the photo speak for a class, laid over it, and the crop that the network saw.

import { Problem, fill, find, isolated, percent, post, texts } from "./core.js";
import { hideReasons, job, say } from "./app.js";

const WHOLE = 0.999; // of a side: a crop that leaves nothing out

// Show the reasons for the likeliest class, or hide them.
export async function toggle() {
  if (!find("reasons").hidden) {
    hideReasons();
    return;
  }
  const options = job.answer.predictions.map(({ label, score }) => new Option(`${isolated(label)} ${percent(score)}`, label));
  find("why-class").replaceChildren(...options);
  await show(job.answer.predictions[0].label);
}

async function show(label) {
  const { upload, control: { signal } } = job;
  find("why").ariaBusy = "true";
  const answer = await post(`explain?${new URLSearchParams({ label })}`, upload, signal).catch((error) => error);
  find("why").ariaBusy = null;
  if (signal.aborted || label !== find("why-class").value) return; // another photo, or another class by now
  const failed = answer instanceof Problem;
  const found = !failed && answer.heatmap.flat().some((value) => value > 0);
  const cropped = !failed && Math.min(...answer.region.slice(2)) < WHOLE;
  const meaning = fill(found ? texts.meaning : texts.nowhere, { label: isolated(label) })
    + (cropped ? ` ${texts.cropped}` : "");
  find("meaning").textContent = failed ? answer.words.join(". ") : meaning;
  find("heat").src = found ? answer.image : "";
  find("heat").hidden = find("compare").hidden = !found;
  find("crop").hidden = !cropped;
  if (cropped) outline(answer.region);
  find("reasons").hidden = false;
  find("why").ariaExpanded = "true";
  say(find("meaning").textContent);
}

// Frame the part that the network saw: left, top, width and height as shares of the photo.
function outline([left, top, width, height]) {
  const sides = { left, top, width, height };
  for (const [name, value] of Object.entries(sides)) find("crop").style[name] = `${value * 100}%`;
}

function compare(held) {
  find("frame").classList.toggle("bare", held);
}

find("why-class").addEventListener("change", ({ target }) => show(target.value));
for (const target of [find("compare"), find("frame")]) {
  target.addEventListener("pointerdown", () => compare(true));
  target.addEventListener("contextmenu", (event) => event.preventDefault()); // as a long press on a phone
}
for (const event of ["pointerup", "pointercancel", "blur"]) window.addEventListener(event, () => compare(false));
find("compare").addEventListener("keydown", ({ key }) => { if (key === " " || key === "Enter") compare(true); });
find("compare").addEventListener("keyup", () => compare(false));
