// example.mjs DIR ORIGIN SERVER TOKEN_URL DEVICE: runs DIR/notifier.js, the client of examples/typescript, in a browser.
//
// The page is at ORIGIN, which nothing has to serve. Prints what examples/typescript/main.ts prints; status 1 after the
// close for good.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { withChromium } from "./chromium.mjs";

const [directory, origin, server, tokenUrl, device] = process.argv.slice(2);
const module = await readFile(join(directory, "notifier.js"), "utf8");

await withChromium(async (browser) => {
  // A page of the public net asks its user before it connects to this machine; in a product both are public.
  const context = await browser.newContext({ permissions: ["local-network-access"] });
  const page = await context.newPage();
  page.on("console", (message) => console.error(message.text()));
  await page.route(`${origin}/**`, (route) =>
    route.request().url().endsWith("/notifier.js")
      ? route.fulfill({ contentType: "text/javascript", body: module })
      : route.fulfill({ contentType: "text/html", body: "<!doctype html><title>example</title>" }),
  );
  await page.exposeFunction("print", (line) => console.log(line));
  await page.goto(`${origin}/`);
  const close = await page.evaluate(
    async ([server, tokenUrl, device]) => {
      const { follow } = await import("/notifier.js");
      const { code, reason } = await follow({
        server,
        device,
        getToken: async () => (await (await fetch(tokenUrl)).json()).token,
        notify: ({ type, payload }) => print(`${type} ${JSON.stringify(payload)}`),
        refetch: () => print("fetch everything"),
      });
      return `${code} ${reason}`;
    },
    [server, tokenUrl, device],
  );
  console.error(`closed for good: ${close}`);
  return 1;
});
