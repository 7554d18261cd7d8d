// node main.ts ws://127.0.0.1:8000 'http://127.0.0.1:8000/dev/token?user=101' [DEVICE]
import { follow } from "./notifier.ts";

declare const process: { argv: string[]; exit(status: number): never }; // in a project: @types/node
const [server, tokenUrl, device] = process.argv.slice(2);

const { code, reason } = await follow({
  server,
  device,
  // In a product: from your own backend, which knows who is logged in.
  getToken: async () => (await (await fetch(tokenUrl)).json()).token,
  notify: ({ type, payload }) => console.log(type, JSON.stringify(payload)),
  refetch: () => console.log("fetch everything"),
});
console.error(`closed for good: ${code} ${reason}`);
process.exit(1);
