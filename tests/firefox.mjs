// The page in Firefox, through WebDriver BiDi: node firefox.mjs PROGRAM URL SCREENSHOTS PHOTO... prints what was seen, as JSON.

import puppeteer from "puppeteer-core";

const [executablePath, url, folder, ...photos] = process.argv.slice(2);
const browser = await puppeteer.launch({ browser: "firefox", executablePath, headless: true });
const page = await browser.newPage();
const messages = [];
page.on("console", (message) => messages.push(message.text()));
page.on("pageerror", (error) => messages.push(String(error)));

const state = (name) => page.waitForSelector(`body[data-state=${name}]`, { timeout: 60_000 });
const text = (selector) => page.$eval(selector, (element) => element.textContent);
const choose = async (...files) => (await page.$("#file")).uploadFile(...files);
const seen = { screens: {} };

for (const [width, height] of [[360, 740], [390, 844], [768, 1024], [1280, 800]]) {
  await page.setViewport({ width, height });
  await page.goto(url);
  await choose(photos[0]);
  await state("answer");
  await page.waitForFunction(() => document.getElementById("photo").naturalWidth > 0);
  seen.screens[`${width}x${height}`] = await page.evaluate(() => ({
    fits: document.documentElement.scrollWidth <= innerWidth,
    actions: document.getElementById("why").getBoundingClientRect().bottom <= innerHeight,
    bar: document.querySelector("#answer > .bar rect").getBoundingClientRect().width > 0,
  }));
  await page.screenshot({ path: `${folder}/firefox-${width}.png` });
}
seen.result = await text("#result");
seen.confidence = await text("#confidence");

await page.click("#why");
await page.waitForSelector("#heat:not([hidden])");
seen.heat = await page.$eval("#heat", (image) => image.decode().then(() => image.naturalWidth));

await page.reload();
await state("answer");
seen.reloaded = await text("#result");

await page.goto(url);
await choose(...photos);
await page.waitForFunction(
  (count) => document.querySelectorAll("#cards button:not(:disabled)").length === count, {}, photos.length,
);
seen.several = await page.$$eval("#cards bdi", (names) => names.map((name) => name.textContent));
await page.click("#cards button");
await state("answer");
await page.goBack();
await state("many");

await page.click("[data-do=csv]"); // must not leave the page or fail
seen.messages = messages;
console.log(JSON.stringify(seen));
await browser.close();
