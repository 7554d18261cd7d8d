// page.mjs BASE OUT_DIR: drives the demo page at BASE/ in a real browser and takes its picture.
//
// Waits until #status has data-state="live", sends a notification with the form #send-form (#send-type, #send-data,
// #send-submit), and waits for an element .notification that names its type. Pictures go to OUT_DIR: light.png and
// dark.png (1280 x 900) and phone.png (390 x 844). Prints one line of JSON; status 1 when the notification did not
// arrive, the page is wider than the phone, a request left the origin, or the console had an error.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { withChromium } from "./chromium.mjs";

const WAIT_MS = 15_000;
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };

const [base, directory] = process.argv.slice(2);
// A WebSocket URL has an origin of its own: what counts is host and port.
const { host } = new URL(base);
const problems = [];

function watch(page) {
  const check = (url) => {
    // data: and blob: never leave the page.
    if (/^(https?|wss?):/.test(url) && new URL(url).host !== host) problems.push(`request to ${url}`);
  };
  page.on("request", (request) => check(request.url()));
  page.on("websocket", (socket) => check(socket.url()));
  page.on("pageerror", (error) => problems.push(`exception: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(`console: ${message.text()}`);
  });
}

await withChromium(async (browser) => {
  await mkdir(directory, { recursive: true });
  const context = await browser.newContext({ viewport: DESKTOP, colorScheme: "light" });
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT_MS);
  watch(page);

  const type = `page_check_${Date.now()}`;
  let arrived = false;
  try {
    await page.goto(new URL("/", base).href);
    await page.waitForSelector('#status[data-state="live"]');
    // Its script must leave the console to whoever tries something there: the README's snippet declares a `token`.
    const console_ = await page.context().newCDPSession(page);
    const typed = { expression: "const { token } = { token: 1 }; token", replMode: true };
    const { exceptionDetails } = await console_.send("Runtime.evaluate", typed);
    if (exceptionDetails) throw new Error(`the console: ${exceptionDetails.exception.description}`);
    await page.fill("#send-form #send-type", type);
    await page.fill("#send-form #send-data", JSON.stringify({ user: 100, channel: 201 }));
    await page.click("#send-form #send-submit");
    await page.locator(".notification", { hasText: type }).first().waitFor();
    arrived = true;
  } catch (error) {
    problems.push(error.message.split("\n")[0]); // the pictures show the rest
  }

  await page.screenshot({ path: join(directory, "light.png") });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(directory, "dark.png") });
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(PHONE);
  await page.screenshot({ path: join(directory, "phone.png") });
  const phone = await page.evaluate(() => ({ scrollWidth: document.documentElement.scrollWidth, innerWidth }));
  if (phone.scrollWidth > PHONE.width) problems.push(`${phone.scrollWidth} px wide on a screen of ${PHONE.width} px`);

  console.log(JSON.stringify({ ok: problems.length === 0, type, arrived, phone, problems }));
  return problems.length === 0 ? 0 : 1;
});
