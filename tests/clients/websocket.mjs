// Gives Node the browser's WebSocket, which it has itself from version 22 on. Not a client by itself.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.NOTIFIER_TEST_NODE_MODULES}/_.js`);
globalThis.WebSocket ??= require("ws").WebSocket;
