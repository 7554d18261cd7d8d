// Gives Node the browser's WebSocket, which it has itself from version 22 on. Not a client by itself.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.NOTIFIER_TEST_NODE_MODULES}/_.js`);
const { WebSocket } = require("ws");

globalThis.WebSocket ??= class extends WebSocket {
  constructor(...args) {
    super(...args);
    // In a browser nobody has to listen for errors: a close follows.
    this.on("error", () => {});
  }
};
