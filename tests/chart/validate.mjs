// Reads custom resources, a JSON array, on standard input, and validates each by its definition's patterns and bounds.
// Unknown fields are TypeScript's part, in check.py.
import { pathToFileURL } from "node:url";

const [modules] = process.argv.slice(2);
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
let failed = 0;
for (const { module, object } of JSON.parse(Buffer.concat(chunks))) {
  const types = await import(pathToFileURL(`${modules}/${module}.js`));
  try {
    new types[object.kind](object).validate();
  } catch (error) {
    failed++;
    console.error(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}
process.exit(failed ? 1 : 0);
