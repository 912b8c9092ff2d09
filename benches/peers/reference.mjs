// The reference resource server (npm @x402/core and @x402/evm) as a peer of `turnpike bench`: it sells `/paid` for one
// atomic unit, and keeps its channels in memory. What it sells it answers itself: it asks no upstream.
//
// To be installed once: npm ci --prefix tests/interop
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { serve } from "../../tests/interop/reference_server.mjs";

const packages = createRequire(new URL("../../tests/interop/package.json", import.meta.url));
const load = (name) => import(pathToFileURL(packages.resolve(name)));
const { HTTPFacilitatorClient, x402HTTPResourceServer, x402ResourceServer } = await load("@x402/core/server");
const { BatchSettlementEvmScheme } = await load("@x402/evm/batch-settlement/server");
const { privateKeyToAccount } = await load("viem/accounts");

const { BENCH_FACILITATOR, BENCH_NETWORK, BENCH_PAY_TO, BENCH_ASSET } = process.env;
// It would sign claims; nothing is claimed here.
const authorizer = privateKeyToAccount(`0x${"01".repeat(32)}`);
const batch = new BatchSettlementEvmScheme(BENCH_PAY_TO, { receiverAuthorizerSigner: authorizer });
const core = new x402ResourceServer(new HTTPFacilitatorClient({ url: BENCH_FACILITATOR })).register(BENCH_NETWORK, batch);
const accepts = {
  scheme: "batch-settlement",
  network: BENCH_NETWORK,
  payTo: BENCH_PAY_TO,
  maxTimeoutSeconds: 300,
  price: { amount: "1", asset: BENCH_ASSET, extra: { name: "USDC", version: "2" } },
};
const web = new x402HTTPResourceServer(core, { "/paid": { accepts } });
await web.initialize();

const server = createServer((request, response) => {
  serve(web, request).then(({ status, headers, body }) => {
    const text = JSON.stringify(body ?? {});
    response.writeHead(status, { ...headers, "Content-Length": Buffer.byteLength(text) });
    response.end(text);
  });
});
server.listen(0, "127.0.0.1", () => console.log(`listening on 127.0.0.1:${server.address().port}`));
