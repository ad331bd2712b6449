// The API page: examples for this very server, each with a button that copies it.

const { copy, copied } = document.querySelector("main").dataset;
const address = new URL(".", location).href.replace(/\/$/, ""); // a proxy may serve the page below a path
const SHOWN = 2000; // milliseconds for which a button says that it has copied

function copyButton(code) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = copy;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = copied;
    setTimeout(() => { button.textContent = copy; }, SHOWN);
  });
  return button;
}

for (const code of document.querySelectorAll("pre code")) {
  code.textContent = code.textContent.replaceAll("http://localhost:8080", address);
  // there is no clipboard on a page that came over plain http from another machine
  if (navigator.clipboard) code.parentElement.previousElementSibling.append(copyButton(code));
}
