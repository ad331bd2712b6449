// "Not right?": the visitor says the right class, and the photo is kept with it, where the owner wants that.

import { job, say } from "./app.js";
import { Problem, feedback, fill, find, isolated, number, post, texts, unreachable } from "./core.js";

// A dialog that says what is kept before anything is sent.
export function offer() {
  const { upload, answer } = job;
  const dialog = document.createElement("dialog");
  const add = (tag, properties) => {
    const element = Object.assign(document.createElement(tag), properties);
    dialog.append(element);
    return element;
  };
  dialog.classList.add("form");
  const title = add("h2", { id: "feedback-title", textContent: feedback.title });
  const choice = add("select", { ariaLabel: feedback.title });
  const labels = answer.predictions.map(({ label }) => label);
  choice.append(Object.assign(new Option(feedback.title, ""), { disabled: true, selected: true }));
  choice.append(...labels.slice(1).map((label) => new Option(isolated(label), label)));
  const about = add("p", { textContent: explanation() });
  const send = add("button", { type: "button", textContent: feedback.send, disabled: true });
  const close = add("button", { type: "button", className: "quiet", textContent: texts.close });
  dialog.setAttribute("aria-labelledby", title.id);
  choice.addEventListener("change", () => { send.disabled = false; });
  send.addEventListener("click", async () => {
    send.disabled = true;
    const path = `feedback?${new URLSearchParams({ label: choice.value })}`;
    const given = await post(path, upload, new AbortController().signal).catch(Problem.of);
    send.disabled = false;
    if (given instanceof Problem) tell(about, given.words.join(". "));
    else thank(given.key);
  });
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { dialog.remove(); find("not-right")?.focus(); });

  function thank(key) {
    title.textContent = feedback.thanks;
    choice.remove();
    about.remove();
    send.remove();
    close.className = "";
    if (key) close.before(undo(key));
    close.focus();
    say(feedback.thanks);
  }

  function undo(key) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: feedback.undo });
    button.addEventListener("click", async () => {
      const response = await fetch(`feedback/${key}`, { method: "DELETE" }).catch(() => null);
      tell(title, response?.ok ? feedback.undone : unreachable().words[0]);
      if (!response?.ok) return;
      button.remove();
      close.focus();
    });
    return button;
  }

  document.body.append(dialog);
  dialog.showModal();
}

function explanation() {
  const { kept, sent, days, count, host } = feedback;
  return host ? fill(sent, { host: isolated(host) }) : fill(kept, { days: number(days), count: number(count) });
}

function tell(element, text) {
  element.textContent = text;
  say(text);
}
