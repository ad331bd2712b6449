// In the place of core.js: the photo is answered in this browser, by a worker, and never sent.
export * from "./core.js?";
import { Problem, find, loaded, pause, texts } from "./core.js?";

const worker = new Worker(new URL("./classifier.js", import.meta.url), { type: "module" });
const waiting = new Map(); // by number: what a photo's answer is given to
let opening = { done: 0, failed: null, opened: false };
let asked = 0;

worker.addEventListener("message", ({ data: { id, answer, code, progress, opened } }) => {
  if (progress !== undefined) opening.done = progress;
  else if (opened) opening.opened = true;
  else if (id === undefined) opening.failed = code;
  else {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (answer) resolve(answer);
    else reject(new Problem(code));
  }
});
worker.addEventListener("error", () => { opening.failed = "model-failed"; });

// Wait until the model is there; `report` is called with the share that has been downloaded.
export async function ready(report, signal) {
  while (!opening.opened) {
    if (opening.failed) throw new Problem(opening.failed);
    report(texts.phases.downloading, opening.done || null);
    await pause(200, signal);
  }
}

// The probabilities and the words for a photo, in the form of POST /analyze.
export async function post(path, photo, signal) {
  if (path !== "analyze") throw new Problem("not-found"); // the server's other requests
  const id = asked += 1;
  const answer = new Promise((resolve, reject) => { waiting.set(id, { resolve, reject }); });
  worker.postMessage({ id, photo });
  signal?.addEventListener("abort", () => waiting.get(id)?.reject(new Problem("aborted")));
  return answer;
}

export async function ask(photo, image, signal, report) {
  await ready(report, signal);
  report(texts.thinking);
  await loaded(image);
  return { answer: await post("analyze", photo, signal), upload: photo };
}

// With ?proof the page compares its answers to the photos in proof/ with the right ones.
async function prove() {
  const { signal } = new AbortController();
  const [table, { tolerance }] = await Promise.all([
    fetch("proof/answers.tsv").then((response) => response.text()),
    fetch("manifest.json").then((response) => response.json()),
  ]);
  const [[, ...classes], ...rows] = table.trimEnd().split("\n").map((line) => line.split("\t"));
  let photos = 0;
  let worst = 0;
  await ready(() => {}, signal);
  for (const [name, ...numbers] of rows.filter(([file]) => !file.endsWith(".ppm"))) { // which no browser decodes
    const photo = await (await fetch(`proof/${name}`)).blob();
    const { predictions } = await post("analyze", photo, signal);
    const scores = new Map(predictions.map(({ label, score }) => [label, score]));
    worst = Math.max(worst, ...classes.map((label, index) => Math.abs(scores.get(label) - numbers[index])));
    photos += 1;
  }
  const holds = photos > 0 && worst <= tolerance; // not of NaN
  return `${holds ? "The proof holds" : "THE PROOF FAILS"}: ${photos} photos, largest difference ${worst.toFixed(6)}`;
}

if (new URLSearchParams(location.search).has("proof")) {
  const line = document.createElement("p");
  line.id = "proof";
  find("pick").before(line);
  prove().catch((error) => `THE PROOF FAILS: ${error.message}`).then((text) => { line.textContent = text; });
}
