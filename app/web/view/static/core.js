// Shared by all parts of the page: its words and numbers, how a photo is made ready, and how the server is asked.

export const find = (id) => document.getElementById(id);
export const {
  texts, phase, maxBytes, maxPixels, maxSide, scaling, feedback, proof,
} = JSON.parse(find("page").textContent);

const TICK = 1000; // milliseconds between two looks at a server that is starting, and of the countdown
const PATIENCE = 120_000; // milliseconds for a request: over that, nobody still waits
const ATTEMPTS = 5; // times that a busy server is asked again by itself
const SCALE_OVER = 2_000_000; // bytes
const SHORT_SIDE = 1536; // px after scaling: docs/decisions.md has the cost of other sides
const QUALITY = 0.92; // of the JPEG: with the sides, a fifth of the bytes of a 12 megapixel photo
const HEADER = 256_000; // bytes, in which a JPEG has said how it stores colors
const LEAST = 0.001; // nothing is certain, and nothing impossible: what would round to 100 % or to 0 %

// --- words and numbers ---------------------------------------------------------------------------------------------

export const fill = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
export const isolated = (label) => `\u2068${label}\u2069`; // a name may be written in the other direction
export const number = (value, options) => new Intl.NumberFormat(document.documentElement.lang, options).format(value);
export const share = (value, digits = 0) => number(value, {
  style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits,
});
export function percent(score) {
  if (score > 1 - LEAST) return `>${share(1 - LEAST, 1)}`;
  return score < LEAST ? `<${share(LEAST, 1)}` : share(score, 1);
}

export class Problem extends Error {
  constructor(code, { detail, request_id: id, after = null } = {}) {
    super(detail ?? code);
    Object.assign(this, { code, id, after });
  }

  get words() {
    const [title, advice] = texts.problems[this.code] ?? [texts.refused, this.message];
    return [title, fill(advice, { limit: number(maxBytes / 1_000_000) })];
  }

  static of(error) {
    return error instanceof Problem ? error : new Problem("internal", { detail: String(error) });
  }
}

export const unreachable = () => new Problem(navigator.onLine ? "unreachable" : "offline");

// --- the server ----------------------------------------------------------------------------------------------------

// POST a photo to a path; `progress` is called with the share that has been sent.
export async function post(path, photo, signal, progress) {
  try {
    return await send(path, photo, signal, progress);
  } catch (problem) {
    if (problem.code !== "unauthorised") throw problem;
    await fetch(".", { signal, cache: "no-store" }).catch(() => {}); // loading the page renews the session
    return send(path, photo, signal, progress);
  }
}

// XMLHttpRequest, since fetch does not report how much has been sent
function send(path, photo, signal, progress = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", photo, "photo");
    request.open("POST", path);
    request.setRequestHeader("Accept", "application/json");
    request.responseType = "json";
    request.timeout = PATIENCE;
    request.upload.onprogress = ({ loaded, total }) => progress(loaded / total);
    request.onload = () => (request.status < 300 ? resolve(request.response) : reject(refusal(request)));
    request.onerror = () => reject(unreachable());
    request.ontimeout = () => reject(new Problem("slow"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function refusal(request) {
  const after = parseInt(request.getResponseHeader("Retry-After"), 10) || null; // seconds
  // a proxy may answer for the server, and then not in its form
  const code = request.response?.code ?? (request.status === 413 ? "payload-too-large" : "internal");
  return new Problem(code, { ...request.response, after });
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(new Problem("aborted")); });
  });
}

let opened = phase === "ready"; // the server has opened its model

// Wait until the server has opened its model; `report` is called with the phase and the share, if known.
export async function ready(report, signal) {
  while (!opened) {
    const response = await fetch("readyz", { signal }).catch(() => { throw unreachable(); });
    const { phase: now, percent: done } = await response.json().catch(() => { throw unreachable(); });
    if (now === "failed") throw new Problem("model-failed");
    opened = now === "ready";
    if (opened) return;
    report(fill(texts.starting, { phase: texts.phases[now] ?? now }), done === null ? null : done / 100);
    await pause(TICK, signal);
  }
}

// The answer to a photo and the upload that got it. A starting or busy server is asked again when it said. `image` is an
// <img> of the photo; `report(text, share or null, hint, state)` is called at each step.
export async function ask(photo, image, signal, report) {
  let upload = null;
  for (let asked = 1; ; asked += 1) {
    try {
      await ready(report, signal);
      report(texts.preparing);
      upload ??= await prepare(photo, image);
      signal.throwIfAborted();
      const answer = await post("analyze", upload, signal, (done) => {
        if (done < 1) report(texts.uploading, done);
        else report(texts.thinking);
      });
      return { answer, upload };
    } catch (error) {
      const problem = Problem.of(error);
      if (problem.code === "model-loading") opened = false; // the server was restarted
      if (signal.aborted || problem.after === null || asked >= ATTEMPTS) throw problem;
      for (let left = problem.after; left > 0; left -= 1) {
        report(texts.busy, 1 - left / problem.after, fill(texts.busyHint, { seconds: left }), "waiting");
        await pause(TICK, signal);
      }
    }
  }
}

// --- the photo -----------------------------------------------------------------------------------------------------

// The photo as it is sent: itself, or a smaller JPEG where that gets the same answer, where the server would refuse the
// photo for its size, or where only this browser can read it (HEIC).
async function prepare(photo, image) {
  const kind = await kindOf(photo);
  const { naturalWidth: width, naturalHeight: height } = await loaded(image); // 0 where it cannot be shown
  const over = photo.size > maxBytes || width * height > maxPixels || Math.max(width, height) > maxSide;
  const large = scaling === "large" && kind === "jpeg" && photo.size > SCALE_OVER;
  const asked = new URLSearchParams(location.search).has("full") ? "never" : scaling;
  const wanted = kind === "heic" || (asked !== "never" && kind !== "inks" && (over || large));
  const smaller = wanted ? await scale(photo).catch(() => null) : null; // null: not read by this browser
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

export function loaded(image) {
  if (image.complete) return image;
  return new Promise((resolve) => {
    for (const event of ["load", "error"]) image.addEventListener(event, () => resolve(image), { once: true });
  });
}
