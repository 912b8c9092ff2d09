// The legacy client (npm x402-fetch), which speaks only version 1 of the protocol: `node pay_v1.mjs URL KEY CALLS`.
// Pays by `exact` on Base Sepolia; the payment is signed without any node. Prints one JSON line per call: status, body,
// and the decoded X-PAYMENT-RESPONSE.
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";

const [url, key, calls] = process.argv.slice(2);
const pay = wrapFetchWithPayment(fetch, await createSigner("base-sepolia", key));
for (let call = 0; call < Number(calls); call += 1) {
  const response = await pay(url, { method: "GET" });
  const header = response.headers.get("X-PAYMENT-RESPONSE");
  const settlement = header ? decodeXPaymentResponse(header) : null;
  console.log(JSON.stringify({ status: response.status, body: await response.text(), settlement }));
}
