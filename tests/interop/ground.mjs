// The ground proves itself, without Turnpike: the reference client, server and facilitator go through a channel's whole
// life and the other schemes on the tests' contracts, and every balance ties out. `node ground.mjs` ends with status 0.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import test, { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { accounts, startChain } from "./evm.mjs";
import { addresses } from "./contracts.mjs";
import { start } from "./processes.mjs";
import { startServer } from "./reference_server.mjs";

const FUNDS = 1_000_000n;
// What each account is: the node's first pays gas.
const [, payer, receiver, authorizer, permitted, owner, second, lone, snake] = accounts;
let chain, facilitator, server;

before(async () => {
  chain = await startChain({
    funds: Object.fromEntries([payer, permitted, second, lone, snake].map(({ address }) => [address, FUNDS])),
    permit2: [permitted.address],
    wallets: [owner.address],
  });
  await write(owner, "mint", [wallet(), FUNDS]);
  facilitator = await start("facilitator.mjs", [], { RPC_URL: chain.rpcUrl });
  server = await startServer(shopOf(facilitator));
});

after(async () => {
  server?.stop();
  await facilitator?.stop();
  chain?.stop();
});

const shopOf = (facilitator) => ({
  facilitatorUrl: facilitator.ready.url,
  network: chain.network,
  token: addresses.TestUSDC,
  payTo: receiver.address,
  authorizer,
});
const wallet = () => chain.wallets[0].address;
const token = () => ({ address: addresses.TestUSDC, abi: chain.contracts.TestUSDC.abi });
const settlement = () => ({ address: addresses.BatchSettlement, abi: chain.contracts.BatchSettlement.abi });
const balance = (address) => chain.client.readContract({ ...token(), functionName: "balanceOf", args: [address] });
const read = (functionName, ...args) => chain.client.readContract({ ...settlement(), functionName, args });

async function write(account, functionName, args) {
  const hash = await chain.client.writeContract({ ...token(), account, functionName, args });
  await chain.client.waitForTransactionReceipt({ hash });
}

/** A client of its own; `settings` as in `pay_evm.mjs`. */
async function client(context, account, settings = {}, shop = server) {
  const all = { key: account.key, rpc_url: chain.rpcUrl, ...settings };
  const process = await start("pay_evm.mjs", [JSON.stringify(all)], {}, { greets: false });
  context.after(process.stop);
  const ask = (command) => process.ask({ ...command, ...(command.url && { url: `${shop.url}${command.url}` }) });
  const pay = async (url) => {
    const answer = await ask({ do: "pay", url });
    assert.equal(answer.status, 200, JSON.stringify(answer));
    return answer;
  };
  return { ask, pay };
}

async function control(body) {
  const asked = body ? { method: "POST", body: JSON.stringify(body) } : {};
  return (await fetch(`${facilitator.ready.url}/control`, asked)).json();
}

/** The facilitator's calls that ended on chain, by kind, since it was last told to forget. */
async function transactions() {
  const { calls } = await control();
  return calls.filter((call) => call.answer?.transaction).map((call) => call.kind);
}

/** Claims and settles all that the server has; the receiver gets exactly `due`. */
async function collect(due) {
  const held = await balance(receiver.address);
  await server.manager.claimAndSettle();
  assert.equal((await balance(receiver.address)) - held, due);
}

test("a channel's life: deposit, vouchers, top-up, claim, settle, partial and full refund", async (context) => {
  await control({ forget: true });
  const { ask, pay } = await client(context, payer, { deposit: "3500" });
  const opened = await pay("/batch");
  assert.equal(opened.payment.payload.type, "deposit");
  assert.ok(opened.payment.payload.deposit.authorization.erc3009Authorization);
  assert.equal(opened.settlement.amount, "3500");
  const channel = opened.payment.payload.voucher.channelId;
  assert.deepEqual(await read("channels", channel), [3500n, 0n]);

  const voucher = await pay("/batch");
  assert.equal(voucher.payment.payload.type, "voucher");
  assert.deepEqual([voucher.settlement.transaction, voucher.settlement.amount], ["", ""]);
  const metered = await pay("/batch/metered");
  assert.equal(metered.settlement.extra.chargedAmount, "300");
  assert.equal(metered.settlement.extra.channelState.chargedCumulativeAmount, "2300");
  assert.equal((await ask({ do: "pay", url: "/batch/broken" })).status, 503);

  await pay("/batch");
  const topped = await pay("/batch");
  assert.equal(topped.payment.payload.type, "deposit");
  assert.deepEqual(await read("channels", channel), [7000n, 0n]);

  await collect(4300n);
  assert.deepEqual(await read("channels", channel), [7000n, 4300n]);
  await pay("/batch");

  const part = await ask({ do: "refund", url: "/batch", amount: "600" });
  assert.equal(part.settlement.amount, "600");
  assert.deepEqual(await read("channels", channel), [6400n, 5300n]);
  const rest = await ask({ do: "refund", url: "/batch" });
  assert.equal(rest.settlement.amount, "1100");
  assert.deepEqual(await read("channels", channel), [5300n, 5300n]);
  assert.equal(await read("refundNonce", channel), 2n);
  // The refunds claimed the last voucher: it is claimed, and not settled yet.
  await server.manager.settle();
  assert.equal(await balance(receiver.address), 5300n);
  assert.equal(await balance(payer.address), FUNDS - 5300n);
  assert.equal(await balance(addresses.BatchSettlement), 0n);
  const kinds = ["deposit", "deposit", "claim", "settle", "refund", "refund", "settle"];
  assert.deepEqual(await transactions(), kinds);
});

test("a deposit by Permit2", async (context) => {
  const { pay } = await client(context, permitted, { transfer: "permit2", deposit: "2000" });
  const opened = await pay("/batch-permit2");
  assert.ok(opened.payment.payload.deposit.authorization.permit2Authorization);
  await pay("/batch-permit2");
  assert.equal(await balance(permitted.address), FUNDS - 2000n);
  await collect(2000n);
  assert.equal(await balance(addresses.BatchSettlement), 0n);
});

test("an ERC-1271 wallet pays without a payer authorizer", async (context) => {
  const { pay } = await client(context, owner, { wallet: wallet(), deposit: "2000" });
  const opened = await pay("/batch");
  assert.equal(opened.payment.payload.channelConfig.payerAuthorizer, "0x0000000000000000000000000000000000000000");
  await pay("/batch");
  assert.equal(await balance(wallet()), FUNDS - 2000n);
  await collect(2000n);
});

test("the client's misdeeds and mishaps", async (context) => {
  const { ask, pay } = await client(context, lone, { deposit: "9000" });
  await pay("/batch");
  await pay("/batch");
  const refused = async (command, error) => {
    const answer = await ask(command);
    assert.equal(answer.status, 402, JSON.stringify(answer));
    assert.equal(answer.required.error, `invalid_batch_settlement_evm_${error}`);
  };
  await refused({ do: "replay" }, "cumulative_amount_mismatch");
  await ask({ do: "tamper", change: { payload: { voucher: { signature: "flip" } } } });
  await refused({ do: "pay", url: "/batch" }, "voucher_signature");
  // It is corrected, signs anew what it changed nothing of, and pays.
  await ask({ do: "tamper", change: { payload: { voucher: { maxClaimableAmount: "3001" } } } });
  assert.equal((await pay("/batch")).requests, 3);
  // Without its state it reads the chain, where nothing is claimed yet; it is corrected, and pays.
  await ask({ do: "forget" });
  const recovered = await pay("/batch");
  assert.equal(recovered.requests, 3);
  assert.equal(recovered.payment.payload.voucher.maxClaimableAmount, "4000");
  // Of two at once one is served first; the other pays too where the server corrects it, and is refused where it is
  // busy.
  const { answers } = await ask({ do: "together", url: "/batch", times: 2 });
  const served = answers.filter((answer) => answer.status === 200).length;
  assert.ok(served >= 1, JSON.stringify(answers));
  await collect(4000n + 1000n * BigInt(served));
});

test("a server leaves the signing of claims and refunds to its facilitator", async (context) => {
  const signing = await start("facilitator.mjs", [], { RPC_URL: chain.rpcUrl, AUTHORIZER_KEY: authorizer.key });
  context.after(signing.stop);
  const shop = await startServer({ ...shopOf(signing), authorizer: undefined });
  context.after(shop.stop);
  const { ask } = await client(context, payer, { deposit: "5000", salt: `0x${"01".repeat(32)}` }, shop);
  const opened = await ask({ do: "pay", url: "/batch" });
  assert.equal(opened.payment.payload.channelConfig.receiverAuthorizer, authorizer.address);
  const held = await balance(receiver.address);
  await shop.manager.claimAndSettle();
  assert.equal((await balance(receiver.address)) - held, 1000n);
  assert.equal((await ask({ do: "refund", url: "/batch" })).settlement.amount, "4000");
});

test("exact by EIP-3009 and by Permit2, and upto", async (context) => {
  const held = await balance(receiver.address);
  const { pay } = await client(context, permitted);
  assert.equal((await pay("/exact")).settlement.success, true);
  assert.equal((await pay("/exact-permit2")).settlement.success, true);
  const upto = await pay("/upto");
  assert.equal(upto.settlement.amount, "420");
  assert.equal((await balance(receiver.address)) - held, 2420n);
  assert.equal(await balance(permitted.address), FUNDS - 2000n - 2420n);
});

test("exact of protocol version 1, by the legacy client", async () => {
  const held = await balance(receiver.address);
  const first = await start("pay_v1.mjs", [`${server.url}/v1`, payer.key, "1"]);
  assert.equal(first.ready.status, 200, JSON.stringify(first.ready));
  assert.equal(first.ready.settlement.success, true);
  assert.equal((await balance(receiver.address)) - held, 1000n);
  assert.equal(await first.ended, 0);
});

test("the reference client for Python", async (context) => {
  const program = fileURLToPath(new URL(".venv/bin/python", import.meta.url));
  if (!existsSync(program)) return context.skip("no .venv here: see requirements.txt");
  const settings = { key: snake.key, rpc_url: chain.rpcUrl, deposit: "3000" };
  const python = await start("pay_evm.py", [JSON.stringify(settings)], {}, { greets: false, program });
  context.after(python.stop);
  for (const call of [1, 2, 3]) {
    const answer = await python.ask({ do: "pay", url: `${server.url}/batch` });
    assert.equal(answer.status, 200, JSON.stringify(answer));
    assert.equal(answer.settlement.extra.chargedAmount, "1000", `call ${call}`);
  }
  assert.equal(await balance(snake.address), FUNDS - 3000n);
  await collect(3000n);
});

test("the facilitator misbehaves as told", async (context) => {
  const { ask, pay } = await client(context, payer, { deposit: "5000", salt: `0x${"07".repeat(32)}` });
  await control({ rules: [{ kind: "deposit", op: "verify", count: 1, do: "refuse" }] });
  assert.equal((await ask({ do: "pay", url: "/batch" })).required.error, "told_to_refuse");
  await control({
    rules: [
      { kind: "any", percent: 0, do: "error" },
      { kind: "deposit", do: "wait", ms: 1 },
    ],
  });
  await pay("/batch");
  await control({ rules: [{ kind: "claim", count: 1, do: "refuse" }] });
  await assert.rejects(server.manager.claim(), /told_to_refuse/);
  await control({ rules: [{ kind: "claim", count: 1, when: "after", do: "hangup" }] });
  await assert.rejects(server.manager.claim(), /fetch failed/);
  await control({ rules: [{ kind: "settle", count: 1, do: "error" }] });
  await assert.rejects(server.manager.settle(), /500/);
  // The claim whose answer was lost is mined: settling now pays it.
  const held = await balance(receiver.address);
  await server.manager.settle();
  assert.equal((await balance(receiver.address)) - held, 1000n);
});

test("the facilitator ends as told, between the sending of a claim and its answer", async (context) => {
  const rules = [{ kind: "claim", when: "sent", do: "exit" }];
  const mortal = await start("facilitator.mjs", [], { RPC_URL: chain.rpcUrl, MISBEHAVE: JSON.stringify(rules) });
  const shop = await startServer(shopOf(mortal));
  context.after(shop.stop);
  const { ask } = await client(context, payer, { deposit: "5000", salt: `0x${"02".repeat(32)}` }, shop);
  const channel = (await ask({ do: "pay", url: "/batch" })).payment.payload.voucher.channelId;
  await assert.rejects(shop.manager.claim(), /fetch failed/);
  assert.equal(await mortal.ended, 70);
  assert.deepEqual(await read("channels", channel), [5000n, 1000n]);
  await server.manager.settle();
});

// Last of all: it moves the chain's clock, after which no client signs anything that the chain still takes.
test("a payer withdraws once the delay is over, and no sooner", async (context) => {
  const { ask, pay } = await client(context, second, { deposit: "5000" });
  const channel = (await pay("/batch")).payment.payload.voucher.channelId;
  assert.equal((await ask({ do: "initiate_withdraw", amount: "5000" })).status, "success");
  const [amount, initiatedAt] = await read("pendingWithdrawals", channel);
  assert.equal(amount, 5000n);
  assert.ok(initiatedAt > 0);
  await collect(1000n);
  assert.match((await ask({ do: "finalize_withdraw" })).error, /WithdrawDelayNotElapsed/);
  await chain.client.increaseTime({ seconds: 900 });
  await chain.client.mine({ blocks: 1 });
  assert.equal((await ask({ do: "finalize_withdraw" })).status, "success");
  assert.deepEqual(await read("channels", channel), [1000n, 1000n]);
  assert.equal(await balance(second.address), FUNDS - 1000n);
});
