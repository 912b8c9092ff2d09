// Makes `tests/vectors/evm/payments.json`: what the reference client (npm @x402/evm) sends for given offers of schemes
// `exact` (both protocol versions) and `upto`. `node payments.mjs` writes it, `node payments.mjs --check` fails unless it
// is what it would write. Clock and randomness are fixed, so every run makes the same.
//
// A list of {version, payer, now, requirements, payload}: `requirements` is the offer in its version's own words,
// `payload` what the client made of it at `now` (Unix seconds).
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { keccak256, toBytes } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { toClientEvmSigner } from "@x402/evm";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/client";
import { UptoEvmScheme } from "@x402/evm/upto/client";

const file = new URL("../vectors/evm/payments.json", import.meta.url);
const now = 1_740_672_000;
Date.now = () => now * 1000;
let drawn = 0;
crypto.getRandomValues = (array) => {
  array.set(toBytes(keccak256(toBytes(`payments ${(drawn += 1)}`))).subarray(0, array.length));
  return array;
};

const account = privateKeyToAccount(keccak256(toBytes("payments payer")));
const signer = toClientEvmSigner(account);
const facilitatorAddress = privateKeyToAccount(keccak256(toBytes("payments facilitator"))).address;

const offer = (scheme, network, extra) => ({
  scheme,
  network,
  amount: "10000",
  asset: "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
  payTo: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
  maxTimeoutSeconds: 60,
  extra: { name: "USDC", version: "2", ...extra },
});
const permit2 = { assetTransferMethod: "permit2" };
const offers = [
  [2, ExactEvmScheme, offer("exact", "eip155:84532")],
  [2, ExactEvmScheme, { ...offer("exact", "eip155:8453"), amount: "1" }],
  [2, ExactEvmScheme, offer("exact", "eip155:84532", permit2)],
  [2, UptoEvmScheme, offer("upto", "eip155:84532", { ...permit2, facilitatorAddress })],
];
const { amount: maxAmountRequired, ...rest } = offer("exact", "base-sepolia");
const about = { resource: "http://127.0.0.1:4021/weather", description: "", mimeType: "" };
offers.push([1, ExactEvmSchemeV1, { ...rest, ...about, maxAmountRequired }]);

const list = [];
for (const [version, Scheme, requirements] of offers) {
  const { payload } = await new Scheme(signer).createPaymentPayload(version, requirements);
  list.push({ version, payer: account.address, now, requirements, payload });
}
const text = `[\n${list.map((item) => `  ${JSON.stringify(item)}`).join(",\n")}\n]\n`;
if (process.argv.includes("--check")) assert.ok(readFileSync(file, "utf8") === text, "run `node payments.mjs`");
else writeFileSync(file, text);
