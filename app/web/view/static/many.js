// Several photos: a grid of their answers, each of which opens, and all of them as CSV or JSON.

import { AGAIN, enter, headlineOf, newBatch, open, say } from "./app.js";
import { Problem, ask, fill, find, loaded, percent, texts } from "./core.js";
import { newId, recall, remember } from "./history.js";
import { pictureOf } from "./seen.js";

const THUMB = 320; // px, of the square on a card
const PHOTOS = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i; // in a folder; what is chosen by hand is all tried
const STOPS = ["offline", "unreachable", "model-failed"]; // the next photo would fail alike
const FORMULA = /^[=+\-@\t\r]/; // a spreadsheet would compute it

let items = []; // { id, name, photo, card, answer, upload, problem }

// The dropped photos, folders within folders too.
export async function fromFolders(entries) {
  const found = await Promise.all(entries.map(walk));
  return photosIn(found.flat());
}

export const photosIn = (files) => files.filter(({ name }) => PHOTOS.test(name) && !name.startsWith("."));

async function walk(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => { entry.file(resolve, reject); })];
  const reader = entry.createReader();
  const entries = [];
  for (;;) {
    const batch = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); }); // a hundred at a time
    if (!batch.length) return (await Promise.all(entries.map(walk))).flat();
    entries.push(...batch);
  }
}

export async function start(photos) {
  items = photos.map((photo) => ({ id: newId(), name: photo.name, photo }));
  history.pushState({ many: items.map(({ id }) => id) }, "");
  show();
  await run(items);
}

// The grid of a state of the tab's history: as it stands, or again from what was kept.
export async function restore(ids) {
  if (items[0]?.id !== ids[0]) {
    const records = await Promise.all(ids.map(recall));
    items = ids.map((id, index) => ({ id, photo: records[index]?.upload, ...records[index] }))
      .filter(({ answer }) => answer);
    for (const item of items) item.card = card(item);
    show();
    for (const item of items) await draw(item, await imageOf(item.photo)) || await drawSeen(item);
  }
  enter(items.length ? "many" : "idle");
  progress();
}

function show() {
  for (const item of items) item.card ??= card(item);
  find("cards").replaceChildren(...items.map((item) => item.card));
  enter("many");
  progress();
}

// One photo after the other; one that fails does not stop the others.
async function run(todo) {
  const signal = newBatch();
  for (const item of todo) item.problem = null;
  for (const item of todo) {
    const image = await imageOf(item.photo);
    await draw(item, image);
    try {
      Object.assign(item, await ask(item.photo, image, signal, (text, done, hint) => progress(hint)));
      if (!image.naturalWidth) await drawSeen(item, signal);
      remember(item.id, { name: item.name, upload: item.upload, answer: item.answer });
    } catch (error) {
      if (signal.aborted) return;
      item.problem = Problem.of(error);
    }
    label(item);
    progress();
    if (item.problem && STOPS.includes(item.problem.code)) {
      for (const left of todo) if (!left.answer) label(Object.assign(left, { problem: left.problem ?? item.problem }));
      break;
    }
  }
  progress();
  say(find("many-title").textContent);
}

export const retry = () => run(items.filter(({ problem }) => problem && AGAIN.includes(problem.code)));

function progress(hint = "") {
  const done = items.filter(({ answer, problem }) => answer || problem).length;
  const failed = items.filter(({ problem }) => problem).length;
  const again = items.some(({ problem }) => problem && AGAIN.includes(problem.code));
  find("many-title").textContent = fill(texts.several, { done, count: items.length });
  find("many-hint").textContent = hint || (failed ? fill(texts.failed, { count: failed }) : "");
  find("many-bar").value = done / items.length;
  find("many-bar").hidden = done === items.length;
  find("many-again").hidden = !(done === items.length && again);
}

// --- cards ---------------------------------------------------------------------------------------------------------

function card(item) {
  const element = document.createElement("li");
  const button = document.createElement("button");
  const name = document.createElement("bdi");
  const chance = document.createElement("span");
  button.type = "button";
  button.append(document.createElement("canvas"), name, chance);
  button.addEventListener("click", () => { if (item.answer) open(item); });
  element.append(button);
  label({ ...item, card: element });
  return element;
}

function label({ card: element, name = "", answer, problem }) {
  const button = element.firstChild;
  const [, title, chance] = button.children;
  const [found, advice] = problem?.words ?? [answer ? headlineOf(answer) : "…", ""];
  button.disabled = !answer;
  button.title = [name, advice].join("\n").trim();
  button.classList.toggle("failed", Boolean(problem));
  title.textContent = found;
  chance.textContent = answer && !answer.unsure ? percent(answer.confidence) : name;
}

async function imageOf(photo) {
  const image = new Image();
  image.src = URL.createObjectURL(photo);
  return loaded(image);
}

// The middle of the photo on its card; false for a photo that the browser cannot show.
async function draw(item, image) {
  const canvas = item.card.querySelector("canvas");
  const { naturalWidth: width, naturalHeight: height } = image;
  const side = Math.min(width, height);
  if (side) {
    canvas.width = canvas.height = THUMB;
    canvas.getContext("2d").drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, THUMB, THUMB);
  }
  URL.revokeObjectURL(image.src);
  return Boolean(side);
}

// What only the server can show.
async function drawSeen(item, signal) {
  const picture = await pictureOf(item.photo, signal);
  if (picture) await draw(item, await imageOf(picture));
}

// --- files ---------------------------------------------------------------------------------------------------------

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // not before the browser has read it
}

const rows = () => items.map(({ name, answer, problem }) => ({ file: name, ...answer, ...(problem && { error: problem.code }) }));

export function saveJson() {
  download("answers.json", "application/json", JSON.stringify(rows(), null, 1));
}

export function saveCsv() {
  const labels = (items.find(({ answer }) => answer)?.answer.predictions ?? []).map(({ label }) => label).sort();
  const lines = rows().map(({ file, result, confidence, unsure, error, predictions = [] }) => {
    const scores = new Map(predictions.map(({ label, score }) => [label, score]));
    return [file, result, confidence, unsure, error, ...labels.map((name) => scores.get(name))];
  });
  const text = [["file", "result", "confidence", "unsure", "error", ...labels], ...lines]
    .map((line) => line.map(cell).join(",")).join("\r\n");
  download("answers.csv", "text/csv", `\ufeff${text}\r\n`); // the mark by which spreadsheets know UTF-8
}

function cell(value = "") {
  const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
