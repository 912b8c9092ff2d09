// The reference facilitator (npm @x402/evm) over HTTP on loopback, in front of an EVM node: `batch-settlement`, `exact`
// and `upto`, and `exact` of protocol version 1 on `base-sepolia`. It can be told to misbehave, as facilitators do.
//
// Environment: RPC_URL; CHAIN_ID (84532); PORT (0 picks a free one); FACILITATOR_KEY (pays gas; the node's first
// development key by default); AUTHORIZER_KEY (advertised, and used as receiver authorizer where a server signs
// nothing); MISBEHAVE (rules, as below); SEED (of the percentages, 1).
// Prints one JSON line when ready, {"url", "network", "signer"}, and ends when its standard input closes.
//
// GET /control answers {"rules", "calls"}: what it was asked (the last 200) and what it answered.
// POST /control takes {"rules": [...]}, in place of those before, or {"forget": true}, which empties `calls`.
// A rule: {"kind", "when", "do", "count", "percent", "ms", "answer"}
//   kind     "deposit", "claim", "settle", "refund", "voucher" (only verified), "exact", "upto" or "any"
//   op       "settle" (default) or "verify"
//   when     "before" (default): the transaction is never sent; "sent": it is sent, and mined whenever the node does;
//            "after": it is mined, then this happens; "answered": once the caller has its answer
//   do       "error": status 500; "refuse": an answer with `success: false`; "hangup": the connection is cut;
//            "exit": this process ends; "wait": only the wait, and then as ever
//   count    for so many calls (default: for all); percent: for so many of a hundred calls (default: 100)
//   ms       waits so long first (default 0)
//   answer   what "error" and "refuse" answer with, over the default
import { AsyncLocalStorage } from "node:async_hooks";
import { createServer } from "node:http";
import { privateKeyToAccount, nonceManager } from "viem/accounts";
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/facilitator";
import { ExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmSchemeV1 } from "@x402/evm/exact/v1/facilitator";
import { UptoEvmScheme } from "@x402/evm/upto/facilitator";
import { accounts, clientOf, endWithInput } from "./evm.mjs";

const CALLS_KEPT = 200;
const { env } = process;
const chainId = Number(env.CHAIN_ID ?? 84532);
const network = `eip155:${chainId}`;
// Transactions sent at once must not share a nonce.
const account = privateKeyToAccount(env.FACILITATOR_KEY ?? accounts[0].key, { nonceManager });
// Of the call that a transaction is sent for: what happens once it is sent.
const sent = new AsyncLocalStorage();
const facilitator = referenceFacilitator();
const random = generator(Number(env.SEED ?? 1));
let rules = JSON.parse(env.MISBEHAVE ?? "[]");
let calls = [];

function referenceFacilitator() {
  const client = clientOf(env.RPC_URL, chainId, account);
  const signer = toFacilitatorEvmSigner({
    address: account.address,
    getCode: (call) => client.getCode(call),
    readContract: (call) => client.readContract({ ...call, args: call.args ?? [] }),
    verifyTypedData: (call) => client.verifyTypedData(call),
    writeContract: async (call) => {
      const hash = await client.writeContract({ ...call, args: call.args ?? [] });
      await sent.getStore()();
      return hash;
    },
    sendTransaction: (call) => client.sendTransaction(call),
    waitForTransactionReceipt: (call) => client.waitForTransactionReceipt(call),
  });
  const authorizer = env.AUTHORIZER_KEY ? privateKeyToAccount(env.AUTHORIZER_KEY) : undefined;
  return new x402Facilitator()
    .register(network, new BatchSettlementEvmScheme(signer, authorizer))
    .register(network, new ExactEvmScheme(signer))
    .register(network, new UptoEvmScheme(signer))
    .registerV1("base-sepolia", new ExactEvmSchemeV1(signer));
}

const server = createServer(async (request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  };
  try {
    const body = request.method === "POST" ? JSON.parse(await text(request)) : undefined;
    const route = `${request.method} ${request.url}`;
    if (route === "GET /supported") answer(200, facilitator.getSupported());
    else if (route === "POST /verify") await serve("verify", body, request, response, answer);
    else if (route === "POST /settle") await serve("settle", body, request, response, answer);
    else if (route === "POST /control") answer(200, control(body));
    else if (route === "GET /control") answer(200, { rules, calls });
    else answer(404, { error: `no such route: ${route}` });
  } catch (error) {
    answer(500, { error: String(error) });
  }
});

/** One call of the facilitator, with whatever the rules have happen to it. */
async function serve(op, body, request, response, answer) {
  const kind = body.paymentPayload.payload?.type ?? body.paymentRequirements.scheme;
  const call = { op, kind, request: body };
  calls = [...calls.slice(1 - CALLS_KEPT), call];
  const rule = ruleFor(op, kind);
  const happens = async (when) => {
    if (rule?.when !== when) return false;
    call.misbehaved = rule;
    if (rule.ms) await new Promise((resolve) => setTimeout(resolve, rule.ms));
    if (rule.do === "exit") process.exit(70);
    if (rule.do === "hangup") request.socket.destroy();
    if (rule.do === "error") answer(500, { error: "told to fail", ...rule.answer });
    if (rule.do === "refuse") answer(200, { ...refusal(op, "told_to_refuse"), ...rule.answer });
    return rule.do !== "wait";
  };

  if (await happens("before")) return;
  let status = 200;
  try {
    const { paymentPayload, paymentRequirements } = body;
    call.answer = await sent.run(
      () => happens("sent"),
      () => facilitator[op](paymentPayload, paymentRequirements),
    );
  } catch (error) {
    status = op === "verify" ? 400 : 500;
    call.answer = refusal(op, `unexpected_${op}_error`, String(error));
  }
  if (await happens("after")) return;
  if (response.writableEnded || request.socket.destroyed) return;
  response.on("finish", () => happens("answered"));
  answer(status, call.answer);
}

function refusal(op, reason, message = reason) {
  return op === "verify"
    ? { isValid: false, invalidReason: reason, invalidMessage: message }
    : { success: false, errorReason: reason, errorMessage: message, transaction: "", network };
}

/** The first rule that holds for a call, with one of its count used up. */
function ruleFor(op, kind) {
  const rule = rules.find(
    (rule) =>
      (rule.op ?? "settle") === op &&
      ["any", kind].includes(rule.kind) &&
      (rule.count ?? 1) > 0 &&
      random() * 100 < (rule.percent ?? 100),
  );
  if (rule?.count) rule.count -= 1;
  return rule && { when: "before", ...rule };
}

function control(body) {
  if (body.rules) rules = body.rules;
  if (body.forget) calls = [];
  return { rules, calls };
}

async function text(request) {
  const parts = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** Numbers from 0 to 1 that are the same in every run (mulberry32). */
function generator(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

endWithInput();
server.listen(Number(env.PORT ?? 0), "127.0.0.1", () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}`, network, signer: account.address }));
});
