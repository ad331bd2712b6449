// Share an answer: a picture of it, drawn here, to be sent on, saved or copied; and the link to the page.

import { headlineOf, job, say } from "./app.js";
import { fill, find, percent, texts } from "./core.js";

const [WIDTH, HEIGHT, EDGE] = [1080, 1350, 60]; // px: the upright format of what people share
const PHOTO = 780; // px high
const SHOWN = 3; // classes below the headline
const COPIED = 2000; // milliseconds for which a button says that it has copied

const link = new URL(".", location).href;

export async function share() {
  const picture = await draw();
  const file = new File([picture], "answer.jpg", { type: picture.type });
  const dialog = document.createElement("dialog");
  const image = new Image();
  image.src = URL.createObjectURL(picture);
  image.alt = fill(texts.sharePicture, { headline: headlineOf(job.answer) });
  const message = { title: document.title, text: find("live").textContent, url: link };
  const buttons = document.createElement("div");
  buttons.className = "buttons";
  const add = (text, act, name = "quiet") => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: name, textContent: text });
    button.addEventListener("click", () => act(button));
    buttons.append(button);
  };
  if (navigator.canShare?.({ files: [file], ...message })) {
    add(texts.share, () => navigator.share({ files: [file], ...message }).catch(() => {}), "");
  }
  add(texts.save, () => save(image.src));
  if (navigator.clipboard) { // not on a page that came over plain http from another machine
    if (window.ClipboardItem) add(texts.copyPicture, (button) => copied(button, copyPicture(image)));
    add(texts.copyLink, (button) => copied(button, navigator.clipboard.writeText(link)));
  }
  add(texts.close, () => dialog.close());
  dialog.append(image, buttons);
  dialog.ariaLabel = texts.share;
  dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); }); // beside it
  dialog.addEventListener("close", () => { URL.revokeObjectURL(image.src); dialog.remove(); });
  document.body.append(dialog);
  dialog.showModal();
}

function save(address) {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = "answer.jpg";
  anchor.click();
}

async function copied(button, copying) {
  const { textContent: before } = button;
  await copying;
  button.textContent = texts.copied;
  say(texts.copied);
  setTimeout(() => { button.textContent = before; }, COPIED);
}

// A clipboard takes pictures as PNG only. The promise is handed over at once: Safari asks for it within the click.
function copyPicture(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  canvas.getContext("2d").drawImage(image, 0, 0);
  const png = new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  return navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
}

// --- the picture ---------------------------------------------------------------------------------------------------

async function draw() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const right = document.documentElement.dir === "rtl";
  context.direction = right ? "rtl" : "ltr";
  // a line of text at the start of the lines, or at their end; returns how wide it is
  const write = (text, y, font, name, width, atEnd = false) => {
    context.font = `${font} ${style.fontFamily}`;
    context.fillStyle = color(name);
    context.textAlign = atEnd ? "end" : "start";
    const line = cut(context, text, width);
    context.fillText(line, atEnd === right ? EDGE : WIDTH - EDGE, y);
    return context.measureText(line).width;
  };
  context.fillStyle = color("ground");
  context.fillRect(0, 0, WIDTH, HEIGHT);
  drawPhoto(context);

  const { answer } = job;
  const shown = find("confidence").textContent;
  const line = WIDTH - 2 * EDGE;
  const wide = write(shown, 945, "800 84px", "accent-text", line, true);
  write(headlineOf(answer), 945, "800 84px", "text", line - wide - EDGE);
  if (shown) drawBar(context, EDGE, 975, line, 24, answer.confidence, color("accent-text"), right);
  const others = answer.predictions.slice(shown ? 1 : 0).slice(0, SHOWN);
  others.forEach(({ label, score }, index) => {
    const y = 1062 + index * 56;
    write(label, y, "400 38px", "text", 380);
    write(percent(score), y, "400 38px", "soft", line, true);
    drawBar(context, right ? EDGE + 180 : EDGE + 420, y - 20, 360, 14, score, color("accent-text"), right);
  });
  write(document.title, HEIGHT - 95, "700 38px", "text", line);
  write(link.replace(/^https?:\/\/|\/$/g, ""), HEIGHT - 48, "400 32px", "soft", line);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.9); });
}

function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// The photo whole, before a faint one that fills the space.
function drawPhoto(context) {
  const [x, y, width, height] = [EDGE, EDGE, WIDTH - 2 * EDGE, PHOTO];
  const image = find("photo");
  const place = (scale) => {
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    context.drawImage(image, x + (width - w) / 2, y + (height - h) / 2, w, h);
  };
  context.save();
  context.beginPath();
  context.roundRect(x, y, width, height, 40);
  context.clip();
  if (image.naturalWidth) {
    const [across, down] = [width / image.naturalWidth, height / image.naturalHeight];
    context.globalAlpha = 0.3;
    place(Math.max(across, down));
    context.globalAlpha = 1;
    place(Math.min(across, down));
  }
  context.restore();
}

function drawBar(context, x, y, width, height, score, color, right) {
  const length = Math.max(height, width * score);
  context.fillStyle = "#80808030";
  context.beginPath();
  context.roundRect(x, y, width, height, height / 2);
  context.fill();
  context.fillStyle = color;
  context.beginPath();
  context.roundRect(right ? x + width - length : x, y, length, height, height / 2);
  context.fill();
}
