// eventsource.mjs BASE TOKEN N [--drop]: the EventSource of a real browser, on BASE/v1/stream.
//
// Every event is printed as one line {"event":…,"lastEventId":…,"frame":…}, where `frame` is the event's data itself,
// with line breaks (white space, in JSON) as spaces; connections opened and lost appear as {"event":"open"} and
// {"event":"error"}. Status 0 after N notifications, 1 after 60 s. With --drop, after the first half of them (rounded
// up), the stream is closed and a new one opened with `since=` the last id, as a page does that was loaded again. A
// stream that the *server* ends is opened again by the browser itself.

import { withChromium } from "./chromium.mjs";

const drop = process.argv.includes("--drop");
const [base, token, count] = process.argv.slice(2).filter((argument) => argument !== "--drop");
const wanted = Number(count);
const BLANK = '<!doctype html><link rel="icon" href="data:,">';
const dropAfter = drop ? Math.ceil(wanted / 2) : Infinity;

// Runs in the page. Everything is judged there, in the callback, so that no event of a closed stream gets through.
function listen({ token, wanted, dropAfter }) {
  let seen = 0;
  let dropped = false;

  const open = (since) => {
    const query = new URLSearchParams({ access_token: token, ...(since && { since }) });
    const source = new EventSource(`/v1/stream?${query}`);
    const onEvent = ({ type, lastEventId, data }) => {
      if (source.readyState === EventSource.CLOSED) return;
      window.emit({ event: type, lastEventId, data });
      if (type !== "message") return;
      seen += 1;
      if (seen >= wanted) {
        source.close();
        window.emit({ event: "done" });
      } else if (seen >= dropAfter && !dropped) {
        dropped = true;
        source.close();
        open(lastEventId);
      }
    };
    for (const type of ["message", "$hello", "$gap", "$bye"]) source.addEventListener(type, onEvent);
    for (const type of ["open", "error"]) source.addEventListener(type, () => window.emit({ event: type }));
  };
  open();
}

await withChromium(async (browser) => {
  const page = await browser.newPage();
  // An empty page of the server's origin: the demo page would open a stream of its own.
  const blank = new URL("/blank-page-of-the-test", base).href;
  await page.route(blank, (route) => route.fulfill({ contentType: "text/html", body: BLANK }));
  await page.goto(blank);
  await page.unroute(blank);

  let finish;
  const done = new Promise((resolve) => (finish = resolve));
  // Awaited: a page that calls it too early loses its first frames.
  await page.exposeFunction("emit", ({ event, lastEventId, data }) => {
    if (event === "done") {
      finish();
    } else if (data === undefined) {
      console.log(JSON.stringify({ event }));
    } else {
      // The data goes out as it came in: JavaScript would round large numbers.
      const frame = data.replace(/[\r\n]/g, " ");
      console.log(`{"event":${JSON.stringify(event)},"lastEventId":${JSON.stringify(lastEventId)},"frame":${frame}}`);
    }
  });
  await page.evaluate(listen, { token, wanted, dropAfter });
  await done;
  return 0;
});
