// The reference client with the reference extension `payment-identifier`, unchanged: `node replay.mjs URL RPC_URL KEY_HEX`.
// Pays once under an id of the extension's making, then sends the very same request again, and then the same payment for
// another request. Prints one JSON line per answer.
import { createKeyPairSignerFromPrivateKeyBytes } from "@solana/kit";
import { appendPaymentIdentifierToExtensions, validatePaymentIdentifier } from "@x402/extensions/payment-identifier";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { UptoSvmScheme } from "@x402/svm/upto/client";

const [url, rpcUrl, keyHex] = process.argv.slice(2);
const signer = await createKeyPairSignerFromPrivateKeyBytes(Buffer.from(keyHex, "hex"));
const client = new x402Client().register("solana:*", new UptoSvmScheme(signer, { rpcUrl }));
let valid;
client.onBeforePaymentCreation(async ({ paymentRequired }) => {
  appendPaymentIdentifierToExtensions(paymentRequired.extensions);
  valid = validatePaymentIdentifier(paymentRequired.extensions["payment-identifier"]);
});
let sent;
const recording = async (input, init) => {
  const request = new Request(input, init);
  if (request.headers.has("PAYMENT-SIGNATURE")) sent = request.clone();
  return fetch(request);
};
const pay = wrapFetchWithPayment(recording, client);

async function show(response) {
  const header = response.headers.get("PAYMENT-RESPONSE");
  const settlement = header ? decodePaymentResponseHeader(header) : null;
  const replay = response.headers.get("Turnpike-Replay");
  console.log(JSON.stringify({ status: response.status, body: await response.text(), replay, valid, settlement }));
}
await show(await pay(url));
await show(await fetch(sent.clone()));
await show(await fetch(`${url}?other`, { headers: sent.headers }));
