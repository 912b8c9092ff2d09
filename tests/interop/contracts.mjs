// Owns the tests' contracts: compiles `contracts/` with npm's solc and says where each stands.
//
// Compiling takes about 4 s of processor time, so what comes of it is kept under `node_modules`, by a digest of all
// that went in. No artifact is committed: there is none that could disagree with the source.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

/** Where the specifications and the reference packages expect each contract, the same on every chain. */
export const addresses = {
  BatchSettlement: "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003",
  Erc3009Collector: "0x4020806089470a89826cB9fB1f4059150b550004",
  Permit2Collector: "0x4020425FAf3B746C082C2f942b4E5159887B0005",
  Permit2: "0x000000000022D473030F116dDEE9F6B43aC78BA3",
  ExactPermit2Proxy: "0x402085c248EeA27D92E8b30b2C58ed07f9E20001",
  UptoPermit2Proxy: "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002",
  // Chain 84532's USDC, the one token there that the reference client pays with unless told otherwise.
  TestUSDC: "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
  TestMulticall3: "0xcA11bde05977b3631167028862bE2a173976CA11",
};

/** Every contract's `abi`, its `bytecode` for a deployment and its `runtime` code for `anvil_setCode`, by name. */
export function contracts() {
  const input = compilerInput();
  const digest = createHash("sha256").update(input).update(compilerVersion()).digest("hex");
  const folder = new URL("node_modules/.cache/", import.meta.url);
  const kept = new URL(`contracts-${digest}.json`, folder);
  try {
    return JSON.parse(readFileSync(kept, "utf8"));
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  const compiled = compile(input);
  // Written beside its place and moved there whole: tests may start at the same time.
  const written = new URL(`contracts-${digest}.${process.pid}`, folder);
  mkdirSync(folder, { recursive: true });
  writeFileSync(written, JSON.stringify(compiled));
  renameSync(written, kept);
  return compiled;
}

function compilerInput() {
  const folder = new URL("contracts/", import.meta.url);
  const names = readdirSync(folder)
    .filter((name) => name.endsWith(".sol"))
    .sort();
  return JSON.stringify({
    language: "Solidity",
    sources: Object.fromEntries(names.map((name) => [name, { content: readFileSync(new URL(name, folder), "utf8") }])),
    settings: {
      optimizer: { enabled: true, runs: 200 },
      evmVersion: "cancun",
      outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
    },
  });
}

// The compiler is 10 MB of WebAssembly, which only a compilation should load.
const require = createRequire(import.meta.url);
const compilerVersion = () => require("solc/package.json").version;

function compile(input) {
  const output = JSON.parse(require("solc").compile(input));
  if (output.errors?.length) throw new Error(output.errors.map((error) => error.formattedMessage).join("\n"));
  const all = Object.values(output.contracts).flatMap((file) => Object.entries(file));
  return Object.fromEntries(
    all.map(([name, { abi, evm }]) => [
      name,
      { abi, bytecode: `0x${evm.bytecode.object}`, runtime: `0x${evm.deployedBytecode.object}` },
    ]),
  );
}
