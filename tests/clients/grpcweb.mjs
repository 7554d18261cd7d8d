// grpcweb.mjs BASE TOKEN N [--ack]: connect-web's gRPC-Web transport in a real browser, on a page of another origin.
//
// Messages are described by tests/proto-baseline.binpb. Every notification is printed as one line {"type", "payload",
// "id", "seq"}; status 0 after N notifications whose type does not begin with `$`, 1 after 60 s or when the stream ends
// before, whose error is printed as a last line of type `$closed`. The page comes from a port of its own on this machine:
// a browser lets no page from elsewhere near the loopback interface.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

import { withChromium } from "./chromium.mjs";

const modules = process.env.NOTIFIER_TEST_NODE_MODULES;
const { buildSync } = createRequire(`${modules}/_.js`)("esbuild");
const ack = process.argv.includes("--ack");
const [base, token, wanted] = process.argv.slice(2).filter((argument) => argument !== "--ack");

// Bundled for the page; `emit` is this program.
const source = `
  import { createClient } from "@connectrpc/connect";
  import { createGrpcWebTransport } from "@connectrpc/connect-web";
  import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
  import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

  window.follow = async ({ base, token, wanted, ack, descriptors }) => {
    const bytes = Uint8Array.from(atob(descriptors), (c) => c.charCodeAt(0));
    const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
    const transport = createGrpcWebTransport({ baseUrl: base });
    const client = createClient(registry.getService("atlas.notifier.v1.Notifier"), transport);
    const headers = { authorization: "Bearer " + token };
    let seen = 0, sessionId;
    try {
      for await (const { notificationType: type, data, notificationId: id, sequence } of client.connect({}, { headers })) {
        await window.emit({ type, payload: JSON.parse(data || "null"), id, seq: Number(sequence) });
        if (type === "$hello") sessionId = JSON.parse(data).session;
        else if (!type.startsWith("$")) {
          seen += 1;
          if (ack && sequence) await client.acknowledge({ sessionId, sequence }, { headers });
        }
        if (seen >= wanted) return 0;
      }
    } catch (error) {
      await window.emit({ type: "$closed", payload: { code: error.code, message: error.message } });
    }
    return 1;
  };`;

await withChromium(async (browser) => {
  const bundle = buildSync({
    stdin: { contents: source, resolveDir: modules },
    nodePaths: [modules],
    bundle: true,
    format: "iife",
    write: false,
  }).outputFiles[0].text;
  const server = createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<!doctype html>"));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.exposeFunction("emit", (line) => console.log(JSON.stringify(line)));
  await page.addScriptTag({ content: bundle });
  const descriptors = readFileSync(fileURLToPath(new URL("../proto-baseline.binpb", import.meta.url)), "base64");
  const arguments_ = { base, token, wanted: Number(wanted), ack, descriptors };
  const status = await page.evaluate((given) => window.follow(given), arguments_);
  server.close();
  server.closeAllConnections();
  return status;
});
