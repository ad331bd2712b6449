// The camera, live: the answer follows what it sees, at the pace of the server. One frame at a time is under way.

import { choose, clear, enter, say, showProblem, showScores } from "./app.js";
import { Problem, find, pause, percent, post, ready } from "./core.js";

const SHORT_SIDE = 480; // px of a frame that is sent: over the input of most networks
const REST = 200; // milliseconds between two frames at least, and as long as an answer takes: others want answers too
const SPOKEN = 3000; // milliseconds between two announcements to screen readers
const ATTEMPTS = 5; // failures one after another, until it is more than a passing one

let facing = "environment"; // or "user"
let control = new AbortController();
const video = document.createElement("video");
Object.assign(video, { id: "video", muted: true, playsInline: true });

export async function start() {
  end();
  clear();
  control = new AbortController();
  const { signal } = control;
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1280 } } });
    signal.addEventListener("abort", () => stream.getTracks().forEach((track) => track.stop()));
    video.srcObject = stream;
    await video.play();
    // a camera that looks at its user is shown as a mirror; what is sent is as others see it
    video.classList.toggle("mirror", stream.getVideoTracks()[0].getSettings().facingMode !== "environment");
  } catch (error) {
    end();
    showProblem(new Problem(error.name === "NotAllowedError" ? "camera-blocked" : "camera-missing"));
    return;
  }
  find("frame").prepend(video);
  find("frame").style.setProperty("--ratio", video.videoWidth / video.videoHeight);
  enter("live");
  find("answer").hidden = true; // until there is one
  const devices = await navigator.mediaDevices.enumerateDevices();
  find("turn").hidden = devices.filter(({ kind }) => kind === "videoinput").length < 2;
  follow(signal);
}

async function follow(signal) {
  let failures = 0;
  let spoken = "";
  let when = -SPOKEN;
  while (!signal.aborted) {
    const begin = performance.now();
    try {
      await visible(signal);
      await ready(() => {}, signal);
      const answer = await post("analyze", await frame(SHORT_SIDE), signal);
      if (signal.aborted) return;
      failures = 0;
      showScores(answer);
      find("answer").hidden = false;
      const headline = find("result").textContent;
      if (headline !== spoken && performance.now() - when > SPOKEN) {
        say(`${headline}, ${percent(answer.confidence)}`);
        [spoken, when] = [headline, performance.now()];
      }
      await pause(Math.max(REST, performance.now() - begin), signal);
    } catch (error) {
      if (signal.aborted) return;
      const problem = Problem.of(error);
      failures += 1;
      if (problem.after === null && failures >= ATTEMPTS) showProblem(problem); // which ends it
      await pause((problem.after ?? 1) * 1000, signal).catch(() => {});
    }
  }
}

function visible(signal) {
  if (!document.hidden) return undefined;
  return new Promise((resolve) => { document.addEventListener("visibilitychange", resolve, { once: true, signal }); });
}

// The current frame of the camera, as a JPEG.
function frame(side) {
  const factor = Math.min(1, side / Math.min(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * factor);
  canvas.height = Math.round(video.videoHeight * factor);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.92); });
}

// Keep the current frame: a photo like any other.
export async function keep() {
  const photo = await frame(Infinity);
  choose(new File([photo], "camera.jpg", { type: photo.type }));
}

export function turn() {
  facing = facing === "user" ? "environment" : "user";
  return start();
}

function end() {
  control.abort();
  video.srcObject = null;
  video.remove();
}

document.addEventListener("leave", end); // any other state
