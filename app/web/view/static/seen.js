// Photos that a browser shows otherwise than the network sees them, or not at all: TIFF, and transparent pictures, of
// which the network sees the colors under the transparency. The server shows them as they are.

import { job, showPhoto } from "./app.js";
import { find, loaded } from "./core.js";

const SIDE = 64; // px of the look for transparency

// The picture that the network sees, as a JPEG; null where the server does not give it.
export async function pictureOf(photo, signal) {
  const body = new FormData();
  body.append("file", photo, "photo");
  const response = await fetch("picture", { method: "POST", body, signal }).catch(() => null);
  return response?.ok ? response.blob() : null;
}

// Show the current photo as the network sees it.
export async function see() {
  const current = job;
  const image = await loaded(find("photo"));
  if (image.naturalWidth && !transparent(image)) return;
  const picture = await pictureOf(current.upload, current.control.signal);
  if (picture && current === job) showPhoto(picture);
}

function transparent(image) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, SIDE, SIDE);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  return data.some((value, index) => index % 4 === 3 && value < 255);
}
