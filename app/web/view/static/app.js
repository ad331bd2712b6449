// The page: pick a photo, see what the classifier makes of it.
//
// One photo at a time goes through one attempt: ready -> prepared -> sent -> answered. The page is always in exactly
// one of the states idle, working, waiting (an attempt that begins again by itself), problem and answer.

const find = (id) => document.getElementById(id);
const { texts, phase, maxBytes, maxPixels, maxSide, scaling } = JSON.parse(find("page").textContent);

const TICK = 1000; // milliseconds between two looks at a server that is starting, and of the countdown
const PATIENCE = 120_000; // milliseconds for a request: over that, nobody still waits
const ATTEMPTS = 5; // times that a busy server is asked again by itself
const SCALE_OVER = 2_000_000; // bytes
const SHORT_SIDE = 1536; // px after scaling: docs/decisions.md has what other sides cost
const QUALITY = 0.92; // of the JPEG: with the sides, a fifth of the bytes of a 12 megapixel photo
const HEADER = 256_000; // bytes, in which a JPEG has said how it stores colors
const SHOWN = 5; // classes before "show all"
const SURE = 0.999;
const SVG = "http://www.w3.org/2000/svg";
const AGAIN = ["unreachable", "slow", "offline", "internal", "overloaded", "queue-timeout", "model-loading",
  "rate-limited", "request-timeout", "bad-request", "malformed-multipart", "malformed-request"];

// --- words ---------------------------------------------------------------------------------------------------------

const fill = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const number = (value, options) => new Intl.NumberFormat(document.documentElement.lang, options).format(value);
const share = (value, digits = 0) => number(value, {
  style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits,
});
const percent = (score) => (score > SURE ? `>${share(SURE, 1)}` : share(score, 1)); // nothing is certain
const seconds = (milliseconds) => number(milliseconds / 1000, { maximumSignificantDigits: 2 });
const size = (bytes) => (bytes < 1_000_000
  ? number(bytes / 1000, { style: "unit", unit: "kilobyte", maximumFractionDigits: 0 })
  : number(bytes / 1_000_000, { style: "unit", unit: "megabyte", maximumFractionDigits: 1 }));

class Problem extends Error {
  constructor(code, { detail, request_id: id, after = null } = {}) {
    super(detail ?? code);
    Object.assign(this, { code, id, after });
  }

  get words() {
    const [title, advice] = texts.problems[this.code] ?? [texts.refused, this.message];
    return [title, fill(advice, { limit: number(maxBytes / 1_000_000) })];
  }
}

// --- states --------------------------------------------------------------------------------------------------------

function enter(state) {
  const focused = document.activeElement;
  document.body.dataset.state = state;
  document.body.classList.toggle("picked", state !== "idle");
  for (const part of document.querySelectorAll("[data-in]")) {
    part.hidden = !part.dataset.in.split(" ").includes(state);
  }
  find("file").nextElementSibling.textContent = state === "idle" ? texts.choose : texts.another;
  // what had the focus is gone: it goes to what is there in every state
  if (focused !== document.body && !focused.offsetParent) find("file").focus({ preventScroll: true });
}

function say(text) {
  find("live").textContent = text; // read out by screen readers
}

// What is being done, and how far: a share from 0 to 1, or null where it is not known.
function step(text, done = null, hint = "") {
  if (find("step").dataset.text !== text) say(text); // once, not at every percent
  find("step").dataset.text = text;
  find("step").textContent = done === null ? `${text}…` : `${text}, ${share(done)}`;
  find("step-hint").textContent = hint;
  if (done === null) find("bar").removeAttribute("value");
  else find("bar").value = done;
}

function showProblem(problem) {
  const [title, advice] = problem.words;
  find("problem-title").textContent = title;
  find("problem-advice").textContent = advice;
  find("problem-id").textContent = problem.code === "internal" && problem.id ? fill(texts.requestId, problem) : "";
  document.querySelector("[data-do=retry]").hidden = !(AGAIN.includes(problem.code) && job.photo);
  enter("problem");
  find("preview").hidden = !job.photo;
  find("problem").focus();
}

// --- the answer ----------------------------------------------------------------------------------------------------

function row({ label, score }) {
  const item = document.createElement("li");
  const name = document.createElement("bdi"); // a name may be written from right to left
  const bar = document.createElementNS(SVG, "svg"); // a meter cannot be given its form in every browser
  const length = document.createElementNS(SVG, "rect");
  const chance = document.createElement("span");
  name.textContent = label;
  chance.textContent = percent(score);
  length.setAttribute("width", `${score * 100}%`);
  bar.classList.add("bar");
  bar.ariaHidden = "true"; // the number says the same
  bar.append(length);
  item.append(name, chance, bar);
  return item;
}

function showAnswer({ result, confidence, unsure, predictions }, milliseconds) {
  const headline = unsure ? texts.unsure : result.replaceAll(";", ", ") || texts.nothing;
  find("result").textContent = headline;
  find("unsure-hint").hidden = !unsure;
  find("unsure-hint").textContent = fill(texts.unsureHint, { label: predictions[0].label });
  find("scores").replaceChildren(...predictions.slice(0, SHOWN).map(row));
  find("rest-scores").replaceChildren(...predictions.slice(SHOWN).map(row));
  find("rest").hidden = predictions.length <= SHOWN;
  find("rest").open = false;
  find("all").textContent = fill(texts.all, { count: predictions.length });
  find("why-class").replaceChildren(...predictions.map(({ label }) => new Option(label)));
  const less = { sent: size(job.upload.size), size: size(job.photo.size) };
  find("facts").textContent = fill(texts.answered, { seconds: seconds(milliseconds) })
    + (job.upload === job.photo ? "" : ` ${fill(texts.shrunk, less)}`);
  hideReasons();
  enter("answer");
  say(unsure ? `${headline}. ${find("unsure-hint").textContent}`
    : fill(texts.announce, { headline, percent: percent(confidence) }));
}

function hideReasons() {
  find("heat").hidden = find("reasons").hidden = true;
  find("why").ariaExpanded = "false";
}

async function showReasons(label) {
  const { upload, control: { signal } } = job;
  find("why").ariaBusy = "true";
  const query = new URLSearchParams({ label });
  const answer = await post(`/explain?${query}`, upload, signal).catch((error) => error);
  find("why").ariaBusy = null;
  if (signal.aborted || label !== find("why-class").value) return; // another photo, or another class by now
  const found = !(answer instanceof Problem) && answer.heatmap.flat().some((value) => value > 0);
  const cropped = found && Math.min(...answer.region.slice(2)) < 0.999;
  const meaning = fill(found ? texts.meaning : texts.nowhere, { label: `“${label}”` })
    + (cropped ? ` ${texts.cropped}` : "");
  find("meaning").textContent = answer instanceof Problem ? answer.words.join(". ") : meaning;
  find("heat").src = found ? answer.image : "";
  find("heat").hidden = find("strength").parentElement.hidden = !found;
  find("reasons").hidden = false;
  find("why").ariaExpanded = "true";
  say(find("meaning").textContent);
}

// --- the server ----------------------------------------------------------------------------------------------------

// POST a photo; `progress` hears of the share that has been sent. XMLHttpRequest, since fetch does not tell.
function post(path, photo, signal, progress = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", photo, "photo");
    request.open("POST", path);
    request.setRequestHeader("Accept", "application/json");
    request.responseType = "json";
    request.timeout = PATIENCE;
    request.upload.onprogress = ({ loaded, total }) => progress(loaded / total);
    request.onload = () => (request.status === 200 ? resolve(request.response) : reject(refusal(request)));
    request.onerror = () => reject(unreachable());
    request.ontimeout = () => reject(new Problem("slow"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function refusal(request) {
  const after = parseInt(request.getResponseHeader("Retry-After"), 10) || null; // seconds
  // what stands between may answer for the server, and then not in its form
  const code = request.response?.code ?? (request.status === 413 ? "payload-too-large" : "internal");
  return new Problem(code, { ...request.response, after });
}

const unreachable = () => new Problem(navigator.onLine ? "unreachable" : "offline");

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(new Problem("aborted")); });
  });
}

// Wait until the server has opened its model; `report` hears of the phase and of the share, if known.
async function ready(report, signal) {
  for (;;) {
    const response = await fetch("/readyz", { signal }).catch(() => { throw unreachable(); });
    const { phase: now, percent: done } = await response.json().catch(() => { throw unreachable(); });
    if (now === "ready") return;
    if (now === "failed") throw new Problem("model-failed");
    report(fill(texts.starting, { phase: texts.phases[now] ?? now }), done === null ? null : done / 100);
    await pause(TICK, signal);
  }
}

// --- smaller before it is sent -------------------------------------------------------------------------------------

// The photo as it is sent: itself, or a smaller JPEG where that gets the same answer, where the server would refuse the
// photo for its size, or where only this browser can read it (HEIC).
async function prepare(photo) {
  const kind = await kindOf(photo);
  const { naturalWidth: width, naturalHeight: height } = await loaded(find("photo")); // 0 where it cannot be shown
  const over = photo.size > maxBytes || width * height > maxPixels || Math.max(width, height) > maxSide;
  const large = scaling === "large" && kind === "jpeg" && photo.size > SCALE_OVER;
  const asked = new URLSearchParams(location.search).has("full") ? "never" : scaling;
  const wanted = kind === "heic" || (asked !== "never" && kind !== "inks" && (over || large));
  const smaller = wanted ? await scale(photo).catch(() => null) : null; // null: not read here
  if (kind === "heic" && !smaller) throw new Problem("heic");
  const upload = smaller && (over || kind === "heic" || smaller.size < photo.size) ? smaller : photo;
  if (upload.size > maxBytes) throw new Problem("payload-too-large");
  return upload;
}

// An upright JPEG, or null where it would lose what the network sees: the server drops transparency, a canvas cannot.
async function scale(photo) {
  // as the server, which takes the numbers of a photo in Display P3 as they are
  const bitmap = await createImageBitmap(photo, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const factor = Math.min(1, SHORT_SIDE / Math.min(width, height), maxSide / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * factor);
  canvas.height = Math.round(height * factor);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let alpha = 3; alpha < data.length; alpha += 4) if (data[alpha] < 255) return null;
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", QUALITY); });
}

// "heic", "jpeg" or "other"; "inks" for a JPEG of four inks, of which a canvas makes other colors than the server.
async function kindOf(photo) {
  const start = await photo.slice(0, HEADER).arrayBuffer().catch(() => { throw new Problem("unreadable"); });
  const text = new TextDecoder("latin1").decode(start);
  if (/^....ftyp(hei|hev|mif1|msf1)/s.test(text)) return "heic";
  const inks = /\xff[\xc0-\xc2]\0\x14\x08/.test(text); // ITU T.81, B.2.2: a frame of four components
  if (!text.startsWith("\xff\xd8")) return "other";
  return inks ? "inks" : "jpeg";
}

function loaded(image) {
  if (image.complete) return image;
  return new Promise((resolve) => {
    for (const event of ["load", "error"]) image.addEventListener(event, () => resolve(image), { once: true });
  });
}

// --- one attempt after the other -----------------------------------------------------------------------------------

// What is going on: the photo, how it is sent, how often that was tried, and what ends the attempt.
let job = { photo: null, upload: null, asked: 0, control: new AbortController() };
let opened = phase === "ready"; // the server has opened its model

function choose(photo) {
  job.control.abort();
  job = { photo, upload: null, asked: 0, control: new AbortController() };
  URL.revokeObjectURL(find("photo").src);
  find("photo").src = URL.createObjectURL(photo);
  find("photo").hidden = false;
  find("no-preview").hidden = true;
  hideReasons();
  attempt();
}

async function attempt() {
  job.control.abort(); // the attempt before
  job.control = new AbortController();
  const { signal } = job.control;
  job.asked += 1;
  enter("working");
  try {
    if (!opened) await ready(step, signal);
    opened = true;
    step(texts.preparing);
    job.upload ??= await prepare(job.photo);
    signal.throwIfAborted();
    const start = performance.now();
    const answer = await post("/analyze", job.upload, signal, (done) => {
      if (done < 1) step(texts.uploading, done);
      else step(texts.thinking);
    });
    showAnswer(answer, performance.now() - start);
  } catch (error) {
    if (!signal.aborted) await recover(error, signal);
  }
}

// A busy server is asked again when it said, a lost connection when it is back; anything else is a person's turn.
async function recover(error, signal) {
  const problem = error instanceof Problem ? error : new Problem("internal", { detail: String(error) });
  if (problem.code === "model-loading") opened = false; // it was started anew
  if (problem.after === null || job.asked >= ATTEMPTS) {
    showProblem(problem);
    return;
  }
  enter("waiting");
  try {
    for (let left = problem.after; left > 0; left -= 1) {
      step(texts.busy, null, fill(texts.busyHint, { seconds: left }));
      find("bar").value = 1 - left / problem.after;
      await pause(TICK, signal);
    }
  } catch {
    return; // another photo, or nobody waits any more
  }
  attempt();
}

function cancel() {
  job.control.abort();
  enter("idle");
  say("");
}

async function trySample(path) {
  const response = await fetch(path).catch(() => null);
  if (response?.ok) choose(await response.blob());
  else showProblem(unreachable());
}

// --- the ways in ---------------------------------------------------------------------------------------------------

function take(files) {
  if (files.length) choose(files[0]);
  else showProblem(new Problem("not-a-file"));
}

for (const input of [find("file"), find("camera")]) {
  input.addEventListener("change", () => {
    if (input.files.length) choose(input.files[0]);
    input.value = ""; // so that the same photo can be chosen again
  });
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
  take(event.dataTransfer.files);
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) take(clipboardData.files);
});

const ACTIONS = {
  retry() { job.asked = 0; attempt(); },
  cancel,
  why() { if (find("reasons").hidden) showReasons(find("why-class").value); else hideReasons(); },
  sample({ value }) { trySample(value); },
};
document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-do]");
  if (button) ACTIONS[button.dataset.do](button);
});
find("why-class").addEventListener("change", ({ target }) => showReasons(target.value));
find("strength").addEventListener("input", ({ target }) => { find("heat").style.opacity = target.value / 100; });
find("photo").addEventListener("error", () => {
  find("photo").hidden = true;
  find("no-preview").hidden = false;
});
window.addEventListener("online", () => {
  if (document.body.dataset.state === "problem" && job.photo) ACTIONS.retry();
});

if (phase !== "ready") {
  ready((text, done) => {
    const known = done === null ? "…" : `, ${share(done)}`;
    find("opening").textContent = `${text}${known}. ${texts.startingIdle}`;
  }).catch(() => {}).then(() => { find("opening").textContent = ""; });
}
