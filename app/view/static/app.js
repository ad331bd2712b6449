// The page: choose a photo, send it to /analyze, show the answer. While the server is still opening its model, wait.

const find = (id) => document.getElementById(id);
const SHOWN = 5; // classes in the answer
const TICK = 1000; // milliseconds between two looks at a server that is starting

const percent = (score) => new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 }).format(score);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function ready() {
  for (;;) {
    const { phase, percent } = await (await fetch("/readyz")).json();
    if (phase === "ready") return;
    if (phase === "failed") throw new Error("The server could not open its model; its log says why.");
    find("status").textContent = `The server is starting: ${phase}${percent === null ? "" : ` ${percent} %`}…`;
    await pause(TICK);
  }
}

async function analyze(photo) {
  const form = new FormData();
  form.append("file", photo);
  const response = await fetch("/analyze", { method: "POST", body: form });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function show({ result, confidence, unsure, predictions }) {
  find("result").textContent = unsure ? `Not sure, perhaps ${result}` : `${result}, ${percent(confidence)}`;
  find("scores").replaceChildren(...predictions.slice(0, SHOWN).map(({ label, score }) => {
    const row = document.createElement("li");
    const name = document.createElement("span");
    const number = document.createElement("span");
    const bar = document.createElement("meter");
    name.textContent = label;
    number.textContent = percent(score);
    bar.value = score;
    bar.ariaHidden = "true"; // the number beside it says the same
    row.append(name, number, bar);
    return row;
  }));
  find("answer").hidden = false;
}

let latest = 0; // a second photo may be chosen before the first is answered

async function choose(photo) {
  const mine = ++latest;
  find("answer").hidden = find("problem").hidden = true;
  URL.revokeObjectURL(find("preview").src);
  find("preview").src = URL.createObjectURL(photo);
  find("preview").hidden = false;
  try {
    await ready();
    find("status").textContent = "Looking at it…";
    const answer = await analyze(photo);
    if (mine === latest) show(answer);
  } catch (error) {
    if (mine !== latest) return;
    find("problem").textContent = error instanceof TypeError
      ? "The server cannot be reached. Check the connection and choose the photo again." : error.message;
    find("problem").hidden = false;
  } finally {
    if (mine === latest) find("status").textContent = "";
  }
}

find("photo").addEventListener("change", ({ target }) => {
  if (target.files.length) choose(target.files[0]);
});
find("preview").addEventListener("error", () => { find("preview").hidden = true; }); // not every browser shows a TIFF

await ready().catch(() => {});
find("status").textContent = "";
const { classes } = await (await fetch("/model")).json();
if (classes) find("classes").textContent = `It tells apart: ${classes.join(", ")}.`;
