// The reference client, unchanged, paying a metered route: `node pay.mjs URL RPC_URL KEY_HEX CALLS`.
// Prints one JSON line per call: status, body length, and the decoded PAYMENT-RESPONSE.
import { createKeyPairSignerFromPrivateKeyBytes } from "@solana/kit";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { UptoSvmScheme } from "@x402/svm/upto/client";

const [url, rpcUrl, keyHex, calls] = process.argv.slice(2);
const signer = await createKeyPairSignerFromPrivateKeyBytes(Buffer.from(keyHex, "hex"));
const client = new x402Client().register("solana:*", new UptoSvmScheme(signer, { rpcUrl }));
const pay = wrapFetchWithPayment(fetch, client);

for (let call = 0; call < Number(calls); call += 1) {
  const started = performance.now();
  const response = await pay(`${url}?call=${call}`);
  const body = await response.text();
  const header = response.headers.get("PAYMENT-RESPONSE");
  console.log(
    JSON.stringify({
      status: response.status,
      bytes: body.length,
      milliseconds: performance.now() - started,
      settlement: header ? decodePaymentResponseHeader(header) : null,
    }),
  );
}
