// The reference client (npm @x402/fetch and @x402/evm) for `batch-settlement`, `exact` and `upto`, told what to do by
// JSON lines on standard input. Each command is answered by one JSON line on standard output, in order.
//
// node pay_evm.mjs '{"key": "0x...", "rpc_url"?, "wallet"?, "salt"?, "deposit"?, "transfer"?, "scheme"?, "any_price"?}'
//   key        the payer's; rpc_url lets the client read the chain (it then recovers lost state from there by itself)
//   wallet     an ERC-1271 wallet that `key` owns: it pays, and no payer authorizer is named
//   salt       of its channels (32 bytes, hexadecimal)
//   deposit    atomic units of each deposit (the client's own policy otherwise)
//   transfer, scheme   take only offers of that `assetTransferMethod` ("eip3009" is the default of an offer) or scheme
//   any_price  without the client's limits to what it spends
//   pack       takes the pack of calls where one is offered (extension call-pack)
//
// Commands, by their `do`; all that go to a `url` take a `method` (GET) too:
//   {"do": "unpaid", "url", "headers"?}   asks without a payment
//   {"do": "pay", "url"}               asks, pays, and asks again, as the reference does
//   {"do": "together", "url", "times"} pays so many times at once; answers {"answers": [...]}
//   {"do": "replay", "url"?}           sends the last payment again, as it was
//   {"do": "tamper", "change"}         changes the next payment before it is sent: {"payload": {"voucher": {...}}} is
//                                      laid over it; a `signature` there may be "flip", "high-s" or "v-0-1"
//   {"do": "refund", "url", "amount"?} asks for a refund, whole unless it names an amount
//   {"do": "forget"}                   loses the client's state
//   {"do": "options", ...}             changes deposit, transfer, scheme or pack
//   {"do": "initiate_withdraw", "amount"}, {"do": "finalize_withdraw"}   from the last channel paid with, by `key`
//
// An answer: {"status", "body", "headers", "requests", "payment", "settlement", "required"}, the last three decoded
// from the last request's PAYMENT-SIGNATURE and the last answer's PAYMENT-RESPONSE and PAYMENT-REQUIRED, or null; or
// {"error"} with what the client threw. It ends when its standard input closes.
import { createInterface } from "node:readline";
import { createWalletClient, http, publicActions, zeroAddress } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { toClientEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/client";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import { UptoEvmScheme } from "@x402/evm/upto/client";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { addresses } from "./contracts.mjs";
import { abi, spoil } from "./typed.mjs";

const settings = JSON.parse(process.argv[2]);
const account = privateKeyToAccount(settings.key);
const chain =
  settings.rpc_url && createWalletClient({ account, transport: http(settings.rpc_url) }).extend(publicActions);
const signer = toClientEvmSigner(
  { address: settings.wallet ?? account.address, signTypedData: (data) => account.signTypedData(data) },
  chain,
);
let batch;
let client;
let sent; // the last request that carried a payment, and that payment
let change; // of the next payment

function connect() {
  const options = {
    ...(settings.salt && { salt: settings.salt }),
    ...(settings.wallet && { payerAuthorizer: zeroAddress }),
    depositStrategy: () => settings.deposit,
  };
  batch = new BatchSettlementEvmScheme(signer, options);
  client = new x402Client()
    .register("eip155:*", batch)
    .register("eip155:*", new ExactEvmScheme(signer))
    .register("eip155:*", new UptoEvmScheme(signer))
    .registerPolicy((version, offers) => offers.filter(isWanted));
  if (settings.any_price) client.setSpendControls(false);
}

function isWanted(offer) {
  const transfer = offer.extra?.assetTransferMethod ?? "eip3009";
  return (settings.transfer ?? transfer) === transfer && (settings.scheme ?? offer.scheme) === offer.scheme;
}

/** Fetches, and keeps what was sent; `seen` gets the exchange. */
const recording = (seen) => async (input, init) => {
  const request = new Request(input, init);
  const header = request.headers.get("PAYMENT-SIGNATURE");
  if (header) {
    let payment = decode(header);
    if (change) {
      payment = overlay(payment, change);
      change = undefined;
      request.headers.set("PAYMENT-SIGNATURE", encode(payment));
    }
    sent = { request: request.clone(), payment };
    seen.payment = payment;
  }
  seen.requests += 1;
  const response = await fetch(request);
  return settings.pack ? packed(response) : response;
};

/** All that a client needs that wants packs: the pack's terms in place of those of one call. */
function packed(response) {
  const required = decode(response.headers.get("PAYMENT-REQUIRED"));
  const pack = required?.extensions?.["call-pack"]?.info;
  if (!pack) return response;
  const headers = new Headers(response.headers);
  headers.set("PAYMENT-REQUIRED", encode({ ...required, accepts: pack.accepts }));
  return new Response(response.body, { status: response.status, headers });
}

async function answer(seen, response) {
  const headers = Object.fromEntries(response.headers);
  const { requests, payment } = seen;
  const settlement = decode(headers["payment-response"]);
  const required = decode(headers["payment-required"]);
  return { status: response.status, body: await response.text(), headers, requests, payment, settlement, required };
}

const fresh = () => ({ requests: 0, payment: null });
const decode = (header) => (header ? JSON.parse(Buffer.from(header, "base64").toString()) : null);
const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64");

/** Lays `over` on `value`, member by member. */
function overlay(value, over) {
  if (typeof over !== "object" || over === null) return over;
  const laid = { ...value };
  for (const [name, inner] of Object.entries(over)) {
    laid[name] =
      name === "signature" && !inner.startsWith("0x") ? spoil(value[name], inner) : overlay(laid[name], inner);
  }
  return laid;
}

async function paid({ url, method = "GET" }) {
  const seen = fresh();
  return answer(seen, await wrapFetchWithPayment(recording(seen), client)(url, { method }));
}

async function write(functionName, amount) {
  const config = sent.payment.payload.channelConfig;
  const args = amount === undefined ? [config] : [config, BigInt(amount)];
  const hash = await chain.writeContract({ address: addresses.BatchSettlement, abi, functionName, args, chain: null });
  return { transaction: hash, status: (await chain.waitForTransactionReceipt({ hash })).status };
}

const commands = {
  unpaid: async ({ url, method = "GET", headers }) => {
    const seen = { ...fresh(), requests: 1 };
    return answer(seen, await fetch(url, { method, headers }));
  },
  pay: paid,
  together: async (command) => {
    const settled = await Promise.allSettled(Array.from({ length: command.times }, () => paid(command)));
    return { answers: settled.map(({ value, reason }) => value ?? { error: String(reason) }) };
  },
  replay: async ({ url }) => {
    const seen = { requests: 1, payment: sent.payment };
    const request = sent.request.clone();
    return answer(seen, await fetch(url ? new Request(url, request) : request));
  },
  tamper: async (command) => {
    change = command.change;
    return {};
  },
  refund: async ({ url, amount }) => {
    const seen = fresh();
    const settlement = await batch.refund(url, { ...(amount && { amount }), fetch: recording(seen) });
    return { ...seen, settlement };
  },
  forget: async () => {
    connect();
    return {};
  },
  options: async ({ do: _, ...options }) => {
    Object.assign(settings, options);
    return {};
  },
  initiate_withdraw: ({ amount }) => write("initiateWithdraw", amount),
  finalize_withdraw: () => write("finalizeWithdraw"),
};

connect();
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const result = await commands[command.do](command).catch((error) => ({ error: String(error?.message ?? error) }));
  console.log(JSON.stringify(result));
}
