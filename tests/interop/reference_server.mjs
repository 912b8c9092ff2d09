// The reference resource server (npm @x402/core and @x402/evm) over HTTP on loopback, with its channels in memory: what
// the ground proves itself with, in the place that Turnpike takes later.
//
// Routes, each for 1000 atomic units unless its answer charges less:
//   /batch            `batch-settlement`, deposits by EIP-3009       /batch-permit2   deposits by Permit2
//   /batch/metered    charges 300                                    /batch/broken    answers 503
//   /exact, /exact-permit2, /upto (charges 420)
//   /v1               `exact` of protocol version 1, by hand: the reference server no longer speaks it
import { createServer } from "node:http";
import { HTTPFacilitatorClient, x402HTTPResourceServer, x402ResourceServer } from "@x402/core/server";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/server";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { UptoEvmScheme } from "@x402/evm/upto/server";

const PRICE = "1000";
const CHARGES = { "/batch/metered": "300", "/upto": "420" };

/** Starts the server. `authorizer` signs claims and refunds; `manager` claims and settles. */
export async function startServer({ facilitatorUrl, network, token, payTo, authorizer }) {
  const facilitator = new HTTPFacilitatorClient({ url: facilitatorUrl });
  const batch = new BatchSettlementEvmScheme(payTo, { receiverAuthorizerSigner: authorizer });
  const core = new x402ResourceServer(facilitator)
    .register(network, batch)
    .register(network, new ExactEvmScheme())
    .register(network, new UptoEvmScheme());
  const web = new x402HTTPResourceServer(core, routes({ network, token, payTo }));
  await web.initialize();

  const first = {
    scheme: "exact",
    network: "base-sepolia",
    maxAmountRequired: PRICE,
    resource: "http://127.0.0.1/v1",
    description: "",
    mimeType: "application/json",
    payTo,
    maxTimeoutSeconds: 300,
    asset: token,
    extra: { name: "USDC", version: "2" },
  };
  const server = createServer((request, response) => {
    const served = request.url === "/v1" ? serveFirst(facilitatorUrl, first, request) : serve(web, request);
    served.then(({ status, headers, body }) => {
      response.writeHead(status, { "Content-Type": "application/json", ...headers });
      response.end(JSON.stringify(body ?? {}));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    manager: batch.createChannelManager(facilitator, network, token),
    channels: batch.getStorage(),
    stop: () => server.close(),
  };
}

function routes({ network, token, payTo }) {
  const accepts = (scheme, extra = {}) => ({
    accepts: { scheme, network, payTo, maxTimeoutSeconds: 300, price: { amount: PRICE, asset: token, extra } },
  });
  const domain = { name: "USDC", version: "2" };
  const permit2 = { ...domain, assetTransferMethod: "permit2" };
  return {
    "/batch-permit2": accepts("batch-settlement", permit2),
    "/batch": accepts("batch-settlement", domain),
    "/batch/*": accepts("batch-settlement", domain),
    "/exact": accepts("exact", domain),
    "/exact-permit2": accepts("exact", permit2),
    "/upto": accepts("upto", permit2),
  };
}

/** The work of the reference's web framework adapters: verify, answer, settle. */
export async function serve(web, request) {
  const url = new URL(request.url, `http://${request.headers.host}`);
  const adapter = {
    getHeader: (name) => request.headers[name.toLowerCase()],
    getMethod: () => request.method,
    getPath: () => url.pathname,
    getUrl: () => url.href,
    getAcceptHeader: () => request.headers.accept ?? "",
    getUserAgent: () => request.headers["user-agent"] ?? "",
  };
  const context = { adapter, path: url.pathname, method: request.method };
  const result = await web.processHTTPRequest(context);
  if (result.type === "payment-error") return result.response;
  if (result.type !== "payment-verified") return { status: 404 };
  if (url.pathname === "/batch/broken") {
    await result.cancellationDispatcher.cancel({ reason: "handler_failed", responseStatus: 503 });
    return { status: 503 };
  }

  const amount = CHARGES[url.pathname];
  const settled = await web.processSettlement(
    result.paymentPayload,
    result.paymentRequirements,
    result.declaredExtensions,
    { request: context },
    amount && { amount },
  );
  return settled.success ? { status: 200, headers: settled.headers, body: { served: url.pathname } } : settled.response;
}

/** Protocol version 1: offers in the body, the payment in `X-PAYMENT`, the receipt in `X-PAYMENT-RESPONSE`. */
async function serveFirst(facilitatorUrl, requirements, request) {
  const refuse = (error) => ({ status: 402, body: { x402Version: 1, error, accepts: [requirements] } });
  const header = request.headers["x-payment"];
  if (!header) return refuse("X-PAYMENT header is required");
  const paymentPayload = JSON.parse(Buffer.from(header, "base64").toString());
  const ask = async (op) => {
    const body = JSON.stringify({ x402Version: 1, paymentPayload, paymentRequirements: requirements });
    const asked = { method: "POST", headers: { "content-type": "application/json" }, body };
    return (await fetch(`${facilitatorUrl}/${op}`, asked)).json();
  };
  const verified = await ask("verify");
  if (!verified.isValid) return refuse(verified.invalidReason);
  const settled = await ask("settle");
  if (!settled.success) return refuse(settled.errorReason);
  const receipt = Buffer.from(JSON.stringify(settled)).toString("base64");
  return { status: 200, headers: { "x-payment-response": receipt }, body: { served: "/v1" } };
}
