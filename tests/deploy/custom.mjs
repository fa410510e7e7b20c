// Checks custom resources (KEDA, Prometheus operator): values by their schemas, names of fields by their types.
// Objects as JSON on stdin; what is refused on stdout, as JSON. The argument is the folder with node_modules.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const root = path.resolve(process.argv[2]);
const ts = createRequire(path.join(root, "package.json"))("typescript");
const GROUPS = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};
const refused = [];
const sources = [];
for (const [at, one] of JSON.parse(fs.readFileSync(0, "utf8")).entries()) {
  const group = GROUPS[one.apiVersion];
  if (!group) continue;
  const name = `${one.kind} ${one.metadata.name}`;
  const kinds = await import(pathToFileURL(path.join(root, "node_modules", group, "index.js")));
  if (!kinds[one.kind]) {
    refused.push(`${name}: no such kind`);
    continue;
  }
  try {
    new kinds[one.kind](one).validate();
  } catch (error) {
    refused.push(`${name}: ${error.message}`);
  }
  // An object literal may have no property that its type lacks: the schemas let those pass.
  const text = `import { I${one.kind} } from "${group}";\nexport const one: I${one.kind} = ${JSON.stringify(one)};\n`;
  sources.push({ file: `${at}.mts`, name, text });
}
const folder = fs.mkdtempSync(path.join(root, "types-"));
try {
  const files = sources.map(({ file, text }) => {
    fs.writeFileSync(path.join(folder, file), text);
    return path.join(folder, file);
  });
  const options = { noEmit: true, strict: true, skipLibCheck: true, module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext, types: [] };
  for (const problem of ts.getPreEmitDiagnostics(ts.createProgram(files, options))) {
    const file = problem.file && path.basename(problem.file.fileName);
    const name = sources.find((one) => one.file === file)?.name ?? file;
    refused.push(`${name}: ${ts.flattenDiagnosticMessageText(problem.messageText, " ")}`);
  }
} finally {
  fs.rmSync(folder, { recursive: true });
}
process.stdout.write(JSON.stringify(refused));
