// The service worker: an installed page opens without a network too, and then says that it has none.
//
// The network comes first, so a page is never older than its server; answers are never kept.

const NAME = "page";
const SHELL = ["./", "static/style.css", "static/app.js", "static/core.js", "static/why.js", "static/many.js",
  "static/seen.js", "static/nearest.js", "static/feedback.js", "static/live.js", "static/share.js", "static/history.js",
  "static/icon.svg", "manifest.webmanifest"];

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(SHELL)));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const path = new URL(request.url).href.replace(registration.scope, "").replace(/[?#].*/, "") || "./";
  if (request.method === "GET" && SHELL.includes(path)) event.respondWith(fresh(request, path));
});

async function fresh(request, path) {
  const cache = await caches.open(NAME);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(path, response.clone());
    return response;
  } catch {
    return await cache.match(path) ?? Response.error();
  }
}
