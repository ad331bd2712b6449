// The page: choose a photo, see its class.
//
// The page is always in exactly one of the states idle, working, waiting (the server said when to ask again), problem,
// answer, many (several photos) and live (the camera). Parts that not every visit needs are loaded when they are used.

import {
  Problem, ask, fill, find, isolated, number, percent, phase, proof, ready, share, texts, unreachable,
} from "./core.js";

const SHOWN = 5; // classes before "show all"
const LONG = 24; // characters, from which a class is set in smaller type
const SVG = "http://www.w3.org/2000/svg";
export const AGAIN = ["unreachable", "slow", "offline", "internal", "overloaded", "queue-timeout", "model-loading",
  "rate-limited", "request-timeout", "bad-request", "malformed-multipart", "unauthorised"];

const seconds = (milliseconds) => number(milliseconds / 1000, { maximumSignificantDigits: 2 });
const size = (bytes) => (bytes < 1_000_000
  ? number(bytes / 1000, { style: "unit", unit: "kilobyte", maximumFractionDigits: 0 })
  : number(bytes / 1_000_000, { style: "unit", unit: "megabyte", maximumFractionDigits: 1 }));

// --- states --------------------------------------------------------------------------------------------------------

export function enter(state) {
  const focused = document.activeElement;
  if (state !== "live") document.dispatchEvent(new Event("leave"));
  document.body.dataset.state = state;
  document.body.classList.toggle("picked", state !== "idle");
  for (const part of document.querySelectorAll("[data-in]")) {
    part.hidden = !part.dataset.in.split(" ").includes(state);
  }
  find("file").nextElementSibling.textContent = state === "idle" ? texts.choose : texts.another;
  // what had the focus is gone: it goes to the first action
  if (focused !== document.body && !focused.offsetParent) {
    [...find("pick").querySelectorAll("input, button")].find((action) => action.offsetParent)?.focus({ preventScroll: true });
  }
}

export function say(text) {
  find("live").textContent = text; // read out by screen readers
}

// What is being done, and how far: a share from 0 to 1, or null where it is not known.
function step(text, done = null, hint = "", state = "working") {
  if (document.body.dataset.state !== state) enter(state);
  if (find("step").dataset.text !== text) say(text); // once, not at every percent
  find("step").dataset.text = text;
  find("step").textContent = done === null || state === "waiting" ? `${text}…` : `${text}, ${share(done)}`;
  find("step-hint").textContent = hint;
  if (done === null) find("bar").removeAttribute("value");
  else find("bar").value = done;
}

export function showProblem(problem) {
  const [title, advice] = problem.words;
  find("problem-title").textContent = title;
  find("problem-advice").textContent = advice;
  find("problem-id").textContent = problem.code === "internal" && problem.id ? fill(texts.requestId, problem) : "";
  document.querySelector("[data-do=retry]").hidden = !(AGAIN.includes(problem.code) && job.photo);
  enter("problem");
  find("stage").hidden = !job.photo;
  find("problem").focus();
}

// --- the answer ----------------------------------------------------------------------------------------------------

function row({ label, score }) {
  const item = document.createElement("li");
  const name = document.createElement("bdi"); // a name may be written from right to left
  const bar = document.createElementNS(SVG, "svg"); // a meter cannot be given its form in every browser
  const length = document.createElementNS(SVG, "rect");
  const chance = document.createElement("span");
  name.textContent = name.title = label; // the title for a name that is too long to be shown whole
  chance.textContent = percent(score);
  length.setAttribute("width", `${score * 100}%`);
  bar.classList.add("bar");
  bar.ariaHidden = "true"; // the number says the same
  bar.append(length);
  item.append(name, bar, chance);
  return item;
}

export const headlineOf = ({ result, unsure }) => (unsure ? texts.unsure : result.replaceAll(";", ", ") || texts.nothing);

// Fill in an answer. Its likeliest class is the headline, and so in the list only where the headline is another.
export function showScores(answer) {
  const { result, confidence, unsure, predictions } = answer;
  const headline = headlineOf(answer);
  const certain = headline === predictions[0].label;
  find("result").textContent = headline;
  find("result").classList.toggle("long", headline.length > LONG);
  find("confidence").textContent = certain ? percent(confidence) : "";
  find("certainty").setAttribute("width", `${confidence * 100}%`);
  find("certainty").parentElement.classList.toggle("gone", !certain);
  find("unsure-hint").hidden = !unsure;
  find("unsure-hint").textContent = fill(texts.unsureHint, { label: isolated(predictions[0].label) });
  find("scores").start = certain ? 2 : 1;
  find("scores").replaceChildren(...predictions.slice(certain ? 1 : 0, SHOWN).map(row));
  find("rest-scores").start = SHOWN + 1;
  find("rest-scores").replaceChildren(...predictions.slice(SHOWN).map(row));
  find("rest").hidden = predictions.length <= SHOWN;
  find("nearest").hidden = true;
  find("all").textContent = fill(texts.all, { count: predictions.length });
  return result;
}

function showAnswer({ photo, upload, answer, milliseconds }) {
  showScores(answer);
  find("rest").open = false;
  find("facts").textContent = milliseconds === undefined ? ""
    : fill(texts.answered, { seconds: seconds(milliseconds) })
      + (upload === photo ? "" : ` ${fill(texts.shrunk, { sent: size(upload.size), size: size(photo.size) })}`);
  hideReasons();
  enter("answer");
  if (upload.type !== "image/jpeg") import("./seen.js").then(({ see }) => see(), () => {});
  if (answer.unsure && proof) import("./nearest.js").then(({ show }) => show(), () => {});
  const headline = headlineOf(answer);
  say(answer.unsure ? `${headline}. ${find("unsure-hint").textContent}`
    : fill(texts.announce, { headline, percent: percent(answer.confidence) }));
}

export function hideReasons() {
  find("heat").hidden = find("crop").hidden = find("reasons").hidden = true;
  find("why").ariaExpanded = "false";
}

// --- one photo -----------------------------------------------------------------------------------------------------

// The photo on the page: how it was sent, its answer, and what ends the attempt to get one.
export let job = { photo: null, upload: null, answer: null, control: new AbortController() };

let batch = new AbortController(); // ends several photos that are under way

// The signal of new ones, which take their place.
export function newBatch() {
  batch.abort();
  batch = new AbortController();
  return batch.signal;
}

// Have no photo.
export function clear() {
  job.control.abort();
  batch.abort();
  job = { photo: null, control: new AbortController() };
  hideReasons();
}

// Put a photo on the stage.
function stage(photo, rest = {}) {
  job.control.abort();
  job = { photo, upload: null, answer: null, control: new AbortController(), ...rest };
  showPhoto(photo);
  hideReasons();
}

export function showPhoto(photo) {
  const image = find("photo");
  URL.revokeObjectURL(image.src);
  image.src = find("backdrop").src = URL.createObjectURL(photo);
  image.hidden = false;
  find("no-preview").hidden = true;
}

export function choose(photo) {
  stage(photo);
  attempt();
}

// Show a photo with the answer that it has got, as an entry of the tab's history.
export function open({ id, photo, upload, answer }) {
  stage(photo, { upload, answer });
  history.pushState({ id }, "");
  showAnswer(job);
}

async function attempt() {
  job.control.abort(); // the attempt before
  job.control = new AbortController();
  const { photo, control: { signal } } = job;
  const start = performance.now();
  enter("working");
  try {
    const { answer, upload } = await ask(photo, find("photo"), signal, step);
    Object.assign(job, { answer, upload, milliseconds: performance.now() - start });
    showAnswer(job);
    keep({ name: photo.name, upload, answer });
  } catch (error) {
    if (!signal.aborted) showProblem(Problem.of(error));
  }
}

function cancel() {
  job.control.abort();
  batch.abort();
  enter("idle");
  say("");
}

async function trySample(path) {
  const response = await fetch(path).catch(() => null);
  if (response?.ok) choose(await response.blob());
  else showProblem(unreachable());
}

// --- the tab's history ---------------------------------------------------------------------------------------------

async function keep(record) {
  const { newId, remember } = await import("./history.js");
  const id = newId();
  history.pushState({ id }, "");
  await remember(id, record);
  navigator.serviceWorker?.register("worker.js").catch(() => {}); // after a first answer; not in private windows
}

// What the tab showed at this place of its history: an answer, several, or none yet.
async function restore(state) {
  job.control.abort();
  if (state?.many) {
    (await import("./many.js")).restore(state.many);
    return;
  }
  const { recall } = await import("./history.js");
  const record = state && await recall(state.id);
  if (!record) {
    cancel();
    return;
  }
  stage(record.upload, record);
  showAnswer(job);
}

async function forget() {
  await (await import("./history.js")).forget();
  history.replaceState(null, "");
  cancel();
  say(texts.forgotten);
}

window.addEventListener("popstate", ({ state }) => restore(state));
if (history.state) restore(history.state);

// --- the ways in ---------------------------------------------------------------------------------------------------

async function take(files) {
  batch.abort();
  if (files.length > 1) {
    job.control.abort();
    (await import("./many.js")).start(files);
  } else if (files.length) choose(files[0]);
  else showProblem(new Problem("not-a-file"));
}

async function drop({ items, files }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean); // while the event lasts
  const dropped = [...files];
  const folders = entries.some((entry) => entry.isDirectory);
  take(folders ? await (await import("./many.js")).fromFolders(entries) : dropped);
}

document.querySelector("[data-do=live]").classList.toggle("gone", !navigator.mediaDevices); // not over plain http
find("file").multiple = true; // the form itself sends one

async function takeFolder(files) {
  take((await import("./many.js")).photosIn(files));
}

function takeFrom(input) {
  const files = [...input.files];
  if (files.length && input.webkitdirectory) takeFolder(files);
  else if (files.length) take(files);
  input.value = ""; // so that the same photo can be chosen again
}

for (const input of [find("file"), find("camera"), find("folder")]) {
  input.addEventListener("change", () => takeFrom(input));
  takeFrom(input); // a photo may be chosen before this script has loaded
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging"); // it has left the window
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  drop(event.dataTransfer);
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) take([...clipboardData.files]);
});

const ACTIONS = {
  retry: attempt,
  cancel,
  forget,
  live: async () => (await import("./live.js")).start(),
  keep: async () => (await import("./live.js")).keep(),
  turn: async () => (await import("./live.js")).turn(),
  share: async () => (await import("./share.js")).share(),
  csv: async () => (await import("./many.js")).saveCsv(),
  json: async () => (await import("./many.js")).saveJson(),
  again: async () => (await import("./many.js")).retry(),
  feedback: async () => (await import("./feedback.js")).offer(),
  why: async () => (await import("./why.js")).toggle(),
  sample: ({ value }) => trySample(value),
};
document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-do]");
  if (button) ACTIONS[button.dataset.do](button)?.catch(() => say(unreachable().words.join(". ")));
});
find("photo").addEventListener("load", ({ target: { naturalWidth, naturalHeight } }) => {
  find("frame").style.setProperty("--ratio", naturalWidth / naturalHeight);
});
find("photo").addEventListener("error", () => {
  find("photo").hidden = true;
  find("no-preview").hidden = false;
});
window.addEventListener("online", () => {
  if (document.body.dataset.state === "problem" && job.photo) attempt();
});

if (!navigator.onLine) find("opening").textContent = unreachable().words[0];
else if (phase !== "ready") {
  ready((text, done) => {
    const known = done === null ? "…" : `, ${share(done)}`;
    find("opening").textContent = `${text}${known}. ${texts.startingIdle}`;
  }).catch(() => {}).then(() => { find("opening").textContent = ""; });
}
