// Starts the headless Chromium of the tests. Not a client by itself.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.NOTIFIER_TEST_NODE_MODULES}/_.js`);
const { chromium } = require("playwright-core");

const DEADLINE_MS = 60_000;

const ARGUMENTS = [
  "--no-sandbox", // tests may run as root, or in a container without user namespaces
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// Runs `use(browser)`, closes the browser, and ends the process: with the status that `use` returns, or with 1 after an
// error or 60 s.
export async function withChromium(use) {
  const browser = await chromium.launch({ executablePath: process.env.NOTIFIER_TEST_CHROMIUM, args: ARGUMENTS });
  let timer;
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${DEADLINE_MS / 1000} s`)), DEADLINE_MS);
  });
  try {
    process.exitCode = await Promise.race([use(browser), deadline]);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  } finally {
    clearTimeout(timer);
    await browser.close();
  }
}
