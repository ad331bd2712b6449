// The worker that answers photos: it opens model.onnx with ONNX Runtime Web and gives it pixels.
import * as ort from "../runtime/ort.wasm.min.mjs";

const ROOT = new URL("../", import.meta.url);
ort.env.wasm.wasmPaths = new URL("../runtime/", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;

const json = async (name) => (await fetch(new URL(name, ROOT))).json();

async function download(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  const total = manifest.bytes;
  const parts = [];
  let done = 0;
  for (const reader = response.body.getReader(); ;) {
    const { value, done: ended } = await reader.read();
    if (ended) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    done += value.length;
    postMessage({ progress: Math.min(done / total, 1) });
  }
}

// RGBA of a photo, upright, its color profile ignored and its alpha not blended.
export async function decode(photo) {
  const imageOrientation = manifest.exif === "turn" ? "from-image" : "none";
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation };
  const bitmap = await createImageBitmap(photo, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let { data } = context.getImageData(0, 0, width, height);
  for (let alpha = 3; alpha < data.length; alpha += 4) {
    if (data[alpha] < 255) {
      data = unblended(bitmap) ?? data; // a canvas keeps colors multiplied by their alpha
      break;
    }
  }
  bitmap.close();
  return { data: new Uint8Array(data.buffer, 0, data.length), width, height };
}

// The colors as they are in the file, whatever their alpha, off a texture; null without WebGL.
function unblended(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  const data = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return data;
}

async function classify({ data, width, height }) {
  const image = new ort.Tensor("uint8", data, [height, width, 4]);
  const { classes, probabilities } = await session.run({ image });
  const predictions = [...classes.data]
    .map((label, index) => ({ label, score: Math.min(probabilities.data[index], 1) }))
    .sort((a, b) => b.score - a.score);
  const [{ label, score }] = predictions;
  const result = manifest.multi_label
    ? predictions.filter((each) => each.score >= manifest.threshold).map((each) => each.label).join(";") : label;
  return { result, confidence: score, familiarity: null, unsure: score < manifest.unsure_below, predictions };
}

let manifest;
let session;
const opened = (async () => {
  manifest = await json("manifest.json");
  session = await ort.InferenceSession.create(await download(new URL("model.onnx", ROOT)), { executionProviders: ["wasm"] });
  postMessage({ opened: true });
})().catch((error) => {
  console.error(error);
  postMessage({ code: "model-failed" });
});

self.addEventListener("message", async ({ data: { id, photo } }) => {
  await opened;
  let code = "corrupt-image";
  try {
    const pixels = await decode(photo);
    code = "internal";
    postMessage({ id, answer: await classify(pixels) });
  } catch (error) {
    console.error(error);
    postMessage({ id, code });
  }
});
