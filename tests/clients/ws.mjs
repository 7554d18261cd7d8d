// ws.mjs URL TOKEN N [--ack]: a WebSocket client on Node's `ws`.
//
// The token travels in the Authorization header, and no subprotocol is offered. Output and status are those of ws.py.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.NOTIFIER_TEST_NODE_MODULES}/_.js`);
const { WebSocket } = require("ws");

const DEADLINE_MS = 60_000;

const acknowledge = process.argv.includes("--ack");
const [url, token, wanted] = process.argv.slice(2).filter((argument) => argument !== "--ack");
const socket = new WebSocket(url, { headers: { Authorization: `Bearer ${token}` } });
let seen = 0;
let done = false;

const deadline = setTimeout(() => {
  console.error(`not done after ${DEADLINE_MS / 1000} s`);
  process.exitCode = 1;
  socket.terminate();
}, DEADLINE_MS);

socket.on("message", (data) => {
  if (done) return; // frames that were on their way when this end closed
  const text = data.toString();
  console.log(text.replace(/[\r\n]/g, " "));
  const frame = JSON.parse(text);
  if (!frame.type.startsWith("$")) {
    seen += 1;
    if (acknowledge && frame.seq !== undefined) socket.send(JSON.stringify({ ack: frame.seq }));
  }
  if (seen >= Number(wanted)) {
    done = true;
    socket.close(1000);
  }
});

socket.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});

socket.on("close", (code, reason) => {
  clearTimeout(deadline);
  if (done) return;
  console.log(JSON.stringify({ type: "$closed", payload: { code, reason: reason.toString() } }));
  process.exitCode = 1;
});
