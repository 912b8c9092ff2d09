// The channel contract and those around it refuse what the specifications say they refuse, each for its own reason; and
// they have the interface that the reference packages call. `node ground_contracts.mjs` ends with status 0.
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import {
  permit2WitnessTypes,
  uptoPermit2WitnessTypes,
  x402ExactPermit2ProxyABI,
  x402UptoPermit2ProxyABI,
} from "@x402/evm";
import {
  BaseError,
  ContractFunctionRevertedError,
  encodeAbiParameters,
  encodeFunctionData,
  hashTypedData,
  parseAbiParameters,
  parseSignature,
  zeroAddress,
  zeroHash,
} from "viem";
import { formatAbiItem } from "viem/utils";
import { addresses } from "./contracts.mjs";
import { accounts, startChain } from "./evm.mjs";
import * as typed from "./typed.mjs";

const DEPOSIT = 10_000n;
const DELAY = 900;
const CHAIN = 84532;
const [relay, payer, receiver, authorizer, stranger, owner, poor] = accounts;
// A constructor's refusal, and that of a guard against re-entry: neither is needed here.
const NOT_OURS = ["error InvalidPermit2Address()", "error ReentrancyGuardReentrantCall()"];
let chain;
let now;

before(async () => {
  chain = await startChain({
    funds: { [payer.address]: 1_000_000n, [poor.address]: 1_000_000n },
    permit2: [payer.address],
    wallets: [owner.address],
  });
  const minted = { ...contract("TestUSDC"), account: relay, functionName: "mint", args: [wallet(), 1_000_000n] };
  await mined(chain.client.writeContract(minted));
  now = (await chain.client.getBlock()).timestamp;
});
after(() => chain?.stop());

const contract = (name) => ({ address: addresses[name], abi: chain.contracts[name].abi });
const wallet = () => chain.wallets[0].address;
const mined = async (hash) => {
  const receipt = await chain.client.waitForTransactionReceipt({ hash: await hash });
  assert.equal(receipt.status, "success");
};
const send = (account, functionName, args, name = "BatchSettlement") =>
  mined(chain.client.writeContract({ ...contract(name), account, functionName, args }));
const read = (functionName, ...args) =>
  chain.client.readContract({ ...contract("BatchSettlement"), functionName, args });

/** The name or the text with which a call reverts; "done" if it does not. */
async function refusal(account, functionName, args, name = "BatchSettlement") {
  // What a called contract reverts with comes through its caller.
  const errors = chain.contracts.Permit2.abi.filter(({ type }) => type === "error");
  const { address, abi } = contract(name);
  try {
    await chain.client.simulateContract({ address, abi: [...abi, ...errors], account, functionName, args });
    return "done";
  } catch (error) {
    const reverted =
      error instanceof BaseError && error.walk((cause) => cause instanceof ContractFunctionRevertedError);
    if (!reverted) throw error;
    return reverted.data?.errorName === "Error" ? reverted.reason : (reverted.data?.errorName ?? reverted.signature);
  }
}

let salts = 0n;
const salt = () => `0x${(++salts).toString(16).padStart(64, "0")}`;

/** The configuration of a channel of its own. */
const configure = (more = {}) => ({
  payer: payer.address,
  payerAuthorizer: payer.address,
  receiver: receiver.address,
  receiverAuthorizer: authorizer.address,
  token: addresses.TestUSDC,
  withdrawDelay: DELAY,
  salt: salt(),
  ...more,
});
const id = (config) => typed.channelId(CHAIN, config);

/** The arguments of a deposit by EIP-3009; `change` what of the authorization should be wrong. */
async function deposit(config, { amount = DEPOSIT, signer = payer, change = {}, spoiling } = {}) {
  const authorization = { validAfter: 0n, validBefore: now + 10_000n, salt: BigInt(salt()), ...change };
  const nonce = typed.depositNonce(change.channelId ?? id(config), authorization.salt);
  const domain = { token: config.token, name: "USDC", version: "2" };
  const message = { ...domain, from: config.payer, value: change.value ?? amount, ...authorization, nonce };
  let signature = await signer.signTypedData(typed.receiveAuthorization(CHAIN, message));
  if (spoiling) signature = typed.spoil(signature, spoiling);
  return [config, amount, addresses.Erc3009Collector, typed.erc3009Data({ ...authorization, signature })];
}

async function depositByPermit2(config, { amount = DEPOSIT, signer = payer, change = {}, permit } = {}) {
  const authorization = { nonce: BigInt(salt()), deadline: now + 10_000n, ...change };
  const message = { token: config.token, amount: change.value ?? amount, channelId: id(config), ...authorization };
  const signature = await signer.signTypedData(typed.permit2Deposit(CHAIN, message));
  return [config, amount, addresses.Permit2Collector, typed.permit2Data({ ...authorization, signature, permit })];
}

/** An open channel with 10,000 in it. */
async function open(more, signer = payer) {
  const config = configure(more);
  await send(relay, "deposit", await deposit(config, { signer }));
  return config;
}

/** One row of a claim. */
async function claim(config, { total = 1000n, ceiling = total, signer = payer, spoiling } = {}) {
  let signature = await signer.signTypedData(typed.voucher(CHAIN, id(config), ceiling));
  if (spoiling) signature = typed.spoil(signature, spoiling);
  return { voucher: { channel: config, maxClaimableAmount: ceiling }, signature, totalClaimed: total };
}

/** The arguments of `claimWithSignature`. */
async function batch(rows, { signer = authorizer, spoiling } = {}) {
  const entries = rows.map(({ voucher, totalClaimed }) => ({
    channelId: id(voucher.channel),
    maxClaimableAmount: voucher.maxClaimableAmount,
    totalClaimed,
  }));
  const signature = await signer.signTypedData(typed.claimBatch(CHAIN, entries));
  return [rows, spoiling ? typed.spoil(signature, spoiling) : signature];
}

/** The arguments of `refundWithSignature`. */
async function refund(config, { amount = 500n, nonce = 0n, signer = authorizer, spoiling } = {}) {
  const signature = await signer.signTypedData(typed.refund(CHAIN, id(config), nonce, amount));
  return [config, amount, nonce, spoiling ? typed.spoil(signature, spoiling) : signature];
}

/** A table of calls: name, expected refusal, sender, function, arguments. */
async function refuses(rows) {
  for (const [name, expected, account, functionName, args, of] of rows) {
    assert.equal(await refusal(account, functionName, await args, of), expected, name);
  }
}

test("the interface is the one that the reference packages call", () => {
  const expected = [
    ["BatchSettlement", typed.abi],
    ["ExactPermit2Proxy", x402ExactPermit2ProxyABI],
    ["UptoPermit2Proxy", x402UptoPermit2ProxyABI],
  ];
  for (const [name, abi] of expected) {
    const signatures = (abi) => abi.map((item) => `${item.type} ${formatAbiItem(item)}`);
    const ours = new Set(signatures(chain.contracts[name].abi));
    const lacking = signatures(abi).filter((item) => !ours.has(item));
    assert.deepEqual(
      lacking.filter((item) => !NOT_OURS.includes(item)),
      [],
      name,
    );
  }
});

test("its digests are those of the typed data", async () => {
  const config = configure();
  assert.equal(await read("getChannelId", config), id(config));
  assert.equal(await read("getVoucherDigest", id(config), 7n), hashTypedData(typed.voucher(CHAIN, id(config), 7n)));
  assert.equal(
    await read("getRefundDigest", id(config), 3n, 7n),
    hashTypedData(typed.refund(CHAIN, id(config), 3n, 7n)),
  );
  const rows = [await claim(config), await claim(configure(), { total: 5n, ceiling: 9n })];
  const entries = rows.map(({ voucher, totalClaimed }) => ({
    channelId: id(voucher.channel),
    maxClaimableAmount: voucher.maxClaimableAmount,
    totalClaimed,
  }));
  assert.equal(await read("getClaimBatchDigest", rows), hashTypedData(typed.claimBatch(CHAIN, entries)));
});

test("deposits", async () => {
  const config = configure();
  const invalid = "FiatTokenV2: invalid signature";
  const with_ = async (more) => deposit({ ...config, ...more });
  await refuses([
    ["as it should be", "done", relay, "deposit", deposit(config)],
    ["no payer", "InvalidChannel", relay, "deposit", with_({ payer: zeroAddress })],
    ["no receiver", "InvalidChannel", relay, "deposit", with_({ receiver: zeroAddress })],
    ["no receiver authorizer", "InvalidChannel", relay, "deposit", with_({ receiverAuthorizer: zeroAddress })],
    ["no token", "InvalidChannel", relay, "deposit", with_({ token: zeroAddress })],
    ["too short a delay", "WithdrawDelayOutOfRange", relay, "deposit", with_({ withdrawDelay: 899 })],
    ["too long a delay", "WithdrawDelayOutOfRange", relay, "deposit", with_({ withdrawDelay: 2_592_001 })],
    ["nothing", "ZeroDeposit", relay, "deposit", deposit(config, { amount: 0n })],
    ["no collector", "InvalidCollector", relay, "deposit", deposit(config).then((args) => args.with(2, zeroAddress))],
    ["another's signature", invalid, relay, "deposit", deposit(config, { signer: stranger })],
    ["for another channel", invalid, relay, "deposit", deposit(config, { change: { channelId: zeroHash } })],
    ["of another amount", invalid, relay, "deposit", deposit(config, { change: { value: 1n } })],
    ["high s", invalid, relay, "deposit", deposit(config, { spoiling: "high-s" })],
    ["v of 0 or 1", invalid, relay, "deposit", deposit(config, { spoiling: "v-0-1" })],
    [
      "too late",
      "FiatTokenV2: authorization is expired",
      relay,
      "deposit",
      deposit(config, { change: { validBefore: now } }),
    ],
    [
      "too early",
      "FiatTokenV2: authorization is not yet valid",
      relay,
      "deposit",
      deposit(config, { change: { validAfter: now + 9000n } }),
    ],
    [
      "more than there is",
      "ERC20: transfer amount exceeds balance",
      relay,
      "deposit",
      deposit(config, { amount: 2_000_000n }),
    ],
    ["by Permit2", "done", relay, "deposit", depositByPermit2(config)],
    [
      "by Permit2, another's signature",
      "InvalidSigner",
      relay,
      "deposit",
      depositByPermit2(config, { signer: stranger }),
    ],
    [
      "by Permit2, for another channel",
      "InvalidSigner",
      relay,
      "deposit",
      depositByPermit2(config, { change: { channelId: zeroHash } }),
    ],
    [
      "by Permit2, too late",
      "SignatureExpired",
      relay,
      "deposit",
      depositByPermit2(config, { change: { deadline: 1n } }),
    ],
  ]);
  const once = await deposit(config);
  await send(relay, "deposit", once);
  const twice = await depositByPermit2(config);
  await send(relay, "deposit", twice);
  await refuses([
    ["the same authorization again", "FiatTokenV2: authorization is used or canceled", relay, "deposit", once],
    ["the same Permit2 nonce again", "InvalidNonce", relay, "deposit", twice],
  ]);
});

test("claims", async () => {
  const config = await open();
  const other = await open({ receiverAuthorizer: stranger.address });
  const one = async (options) => [[await claim(config, options)]];
  const signed = async (options, of) => batch([await claim(config, options)], of);
  await refuses([
    ["by the receiver", "done", receiver, "claim", one()],
    ["by the authorizer", "done", authorizer, "claim", one()],
    ["by anyone with the authorizer's signature", "done", stranger, "claimWithSignature", signed()],
    ["by a stranger", "NotAuthorizedToClaim", stranger, "claim", one()],
    ["none", "EmptyBatch", authorizer, "claim", [[]]],
    ["none, signed", "EmptyBatch", stranger, "claimWithSignature", batch([])],
    ["a voucher of another", "InvalidSignature", authorizer, "claim", one({ signer: stranger })],
    ["a voucher of one bit less", "InvalidSignature", authorizer, "claim", one({ spoiling: "flip" })],
    ["a voucher with a high s", "InvalidSignature", authorizer, "claim", one({ spoiling: "high-s" })],
    ["a voucher with v of 0 or 1", "InvalidSignature", authorizer, "claim", one({ spoiling: "v-0-1" })],
    ["more than signed", "ClaimExceedsCeiling", authorizer, "claim", one({ total: 1001n, ceiling: 1000n })],
    ["more than is there", "ClaimExceedsBalance", authorizer, "claim", one({ total: DEPOSIT + 1n })],
    ["a batch that another signed", "InvalidSignature", relay, "claimWithSignature", signed({}, { signer: stranger })],
    ["a batch with a high s", "InvalidSignature", relay, "claimWithSignature", signed({}, { spoiling: "high-s" })],
    ["a batch with v of 0 or 1", "InvalidSignature", relay, "claimWithSignature", signed({}, { spoiling: "v-0-1" })],
    [
      "a batch with another's channel",
      "NotReceiverAuthorizer",
      relay,
      "claimWithSignature",
      batch([await claim(config), await claim(other)]),
    ],
  ]);
  await send(authorizer, "claim", await one());
  // At or below what is claimed already, a row is passed over unread, though its voucher be worthless.
  await send(authorizer, "claim", await one({ total: 999n, signer: stranger }));
  assert.deepEqual(await read("channels", id(config)), [DEPOSIT, 1000n]);
});

test("vouchers of a contract wallet", async () => {
  const config = await open({ payer: wallet(), payerAuthorizer: zeroAddress }, owner);
  const one = async (options) => [[await claim(config, options)]];
  await refuses([
    ["its owner's signature", "done", receiver, "claim", one({ signer: owner })],
    ["another's signature", "InvalidSignature", receiver, "claim", one({ signer: stranger })],
    ["high s", "InvalidSignature", receiver, "claim", one({ signer: owner, spoiling: "high-s" })],
  ]);
  const plain = await open({ payerAuthorizer: zeroAddress });
  await refuses([
    ["no authorizer and no contract", "done", receiver, "claim", claim(plain).then((row) => [[row]])],
    ["another's", "InvalidSignature", receiver, "claim", claim(plain, { signer: stranger }).then((row) => [[row]])],
  ]);
});

test("refunds", async () => {
  const config = await open();
  await refuses([
    ["by the receiver", "done", receiver, "refund", [config, 1n]],
    ["by a stranger", "NotAuthorizedToRefund", stranger, "refund", [config, 1n]],
    ["of nothing", "ZeroRefund", receiver, "refund", [config, 0n]],
    ["of nothing, signed", "ZeroRefund", relay, "refundWithSignature", refund(config, { amount: 0n })],
    ["a later nonce", "InvalidRefundNonce", relay, "refundWithSignature", refund(config, { nonce: 1n })],
    ["another's signature", "InvalidSignature", relay, "refundWithSignature", refund(config, { signer: payer })],
    ["high s", "InvalidSignature", relay, "refundWithSignature", refund(config, { spoiling: "high-s" })],
    ["v of 0 or 1", "InvalidSignature", relay, "refundWithSignature", refund(config, { spoiling: "v-0-1" })],
    [
      "signed for another amount",
      "InvalidSignature",
      relay,
      "refundWithSignature",
      refund(config).then((args) => args.with(1, 501n)),
    ],
  ]);
  const args = await refund(config);
  await send(relay, "refundWithSignature", args);
  await refuses([["a nonce used already", "InvalidRefundNonce", relay, "refundWithSignature", args]]);
  // Of more than there is it pays what there is; of nothing left it pays nothing, and the nonce goes on all the same.
  await send(relay, "refundWithSignature", await refund(config, { amount: DEPOSIT, nonce: 1n }));
  assert.deepEqual(await read("channels", id(config)), [0n, 0n]);
  await send(relay, "refundWithSignature", await refund(config, { amount: 1n, nonce: 2n }));
  assert.equal(await read("refundNonce", id(config)), 3n);
});

test("several calls in one transaction, all or none", async () => {
  const config = await open();
  const call = async (functionName, args) =>
    encodeFunctionData({ ...contract("BatchSettlement"), functionName, args: await args });
  const claimed = await call("claimWithSignature", batch([await claim(config)]));
  const refunded = await call("refundWithSignature", refund(config, { amount: DEPOSIT }));
  const wrong = await call("refundWithSignature", refund(config, { nonce: 1n }));
  await refuses([["the second fails", "InvalidRefundNonce", relay, "multicall", [[claimed, wrong]]]]);
  await send(relay, "multicall", [[claimed, refunded]]);
  assert.deepEqual(await read("channels", id(config)), [1000n, 1000n]);
});

test("an EIP-2612 permit stands in for an approval of Permit2", async () => {
  const value = 1000n;
  const signPermit = async (of) => {
    const nonce = await chain.client.readContract({
      ...contract("TestUSDC"),
      functionName: "nonces",
      args: [poor.address],
    });
    const message = { owner: poor.address, spender: addresses.Permit2, value, nonce, deadline: now + 10_000n, ...of };
    const signature = await poor.signTypedData({
      domain: { name: "USDC", version: "2", chainId: CHAIN, verifyingContract: addresses.TestUSDC },
      types: { Permit: typed.fields("address owner, address spender, uint256 value, uint256 nonce, uint256 deadline") },
      primaryType: "Permit",
      message,
    });
    const { r, s, v } = parseSignature(signature);
    return { value: message.value, deadline: message.deadline, v: Number(v), r, s };
  };

  const config = configure({ payer: poor.address, payerAuthorizer: poor.address });
  const without = await depositByPermit2(config, { amount: value, signer: poor });
  const lacking = "ERC20: transfer amount exceeds allowance";
  await refuses([["no allowance", lacking, relay, "deposit", without]]);
  const { deadline, v, r, s } = await signPermit();
  const permit = encodeAbiParameters(parseAbiParameters("uint256, uint256, uint8, bytes32, bytes32"), [
    value,
    deadline,
    v,
    r,
    s,
  ]);
  await send(relay, "deposit", await depositByPermit2(config, { amount: value, signer: poor, permit }));

  const witness = { to: receiver.address, validAfter: 0n };
  const transfer = { permitted: { token: addresses.TestUSDC, amount: value }, nonce: BigInt(salt()), deadline };
  const signature = await poor.signTypedData({
    domain: { name: "Permit2", chainId: CHAIN, verifyingContract: addresses.Permit2 },
    types: permit2WitnessTypes,
    primaryType: "PermitWitnessTransferFrom",
    message: { ...transfer, spender: addresses.ExactPermit2Proxy, witness },
  });
  const rest = [transfer, poor.address, witness, signature];
  const proxy = "ExactPermit2Proxy";
  await refuses([
    ["no allowance, exact", lacking, relay, "settle", rest, proxy],
    [
      "of another amount",
      "Permit2612AmountMismatch",
      relay,
      "settleWithPermit",
      [await signPermit({ value: value + 1n }), ...rest],
      proxy,
    ],
  ]);
  await send(relay, "settleWithPermit", [await signPermit(), ...rest], proxy);
});

test("the proxies of exact and upto", async () => {
  const amount = 1000n;
  const permit = { permitted: { token: addresses.TestUSDC, amount }, nonce: BigInt(salt()), deadline: now + 10_000n };
  const exact = { to: receiver.address, validAfter: 0n };
  const upto = { to: receiver.address, facilitator: relay.address, validAfter: 0n };
  const sign = (spender, types, witness) =>
    payer.signTypedData({
      domain: { name: "Permit2", chainId: CHAIN, verifyingContract: addresses.Permit2 },
      types,
      primaryType: "PermitWitnessTransferFrom",
      message: { ...permit, spender, witness },
    });
  const [exactProxy, uptoProxy] = ["ExactPermit2Proxy", "UptoPermit2Proxy"];
  const byExact = await sign(addresses[exactProxy], permit2WitnessTypes, exact);
  const byUpto = await sign(addresses[uptoProxy], uptoPermit2WitnessTypes, upto);
  const other = { ...exact, to: stranger.address };
  const [from, early] = [payer.address, now + 10_000n];
  const more = { ...permit, permitted: { ...permit.permitted, amount: amount + 1n } };
  await refuses([
    ["exact", "done", stranger, "settle", [permit, from, exact, byExact], exactProxy],
    ["exact, to another", "InvalidSigner", relay, "settle", [permit, from, other, byExact], exactProxy],
    ["exact, of more", "InvalidSigner", relay, "settle", [more, from, exact, byExact], exactProxy],
    [
      "exact, early",
      "PaymentTooEarly",
      relay,
      "settle",
      [permit, from, { ...exact, validAfter: early }, byExact],
      exactProxy,
    ],
    ["upto, less", "done", relay, "settle", [permit, 420n, from, upto, byUpto], uptoProxy],
    ["upto, more", "AmountExceedsPermitted", relay, "settle", [permit, amount + 1n, from, upto, byUpto], uptoProxy],
    [
      "upto, another sends it",
      "UnauthorizedFacilitator",
      stranger,
      "settle",
      [permit, 420n, from, upto, byUpto],
      uptoProxy,
    ],
    ["upto by exact's proxy", "InvalidSigner", relay, "settle", [permit, from, exact, byUpto], exactProxy],
  ]);
});

// Last of all: it moves the chain's clock.
test("withdrawals", async () => {
  const config = await open();
  await refuses([
    ["by a stranger", "InvalidChannel", stranger, "initiateWithdraw", [config, 1n]],
    ["of nothing", "NothingToWithdraw", payer, "initiateWithdraw", [config, 0n]],
    ["of more than there is", "WithdrawAmountExceedsAvailable", payer, "initiateWithdraw", [config, DEPOSIT + 1n]],
    ["of none pending", "WithdrawalNotPending", payer, "finalizeWithdraw", [config]],
  ]);
  await send(payer, "initiateWithdraw", [config, DEPOSIT]);
  await refuses([
    ["a second", "WithdrawalAlreadyPending", payer, "initiateWithdraw", [config, 1n]],
    ["too early", "WithdrawDelayNotElapsed", payer, "finalizeWithdraw", [config]],
  ]);
  await send(receiver, "refund", [config, 1000n]);
  assert.equal((await read("pendingWithdrawals", id(config)))[0], DEPOSIT - 1000n);
  await send(authorizer, "claim", [[await claim(config)]]);
  await chain.client.increaseTime({ seconds: DELAY });
  await chain.client.mine({ blocks: 1 });
  await refuses([["by a stranger", "NotAuthorizedToFinalizeWithdraw", stranger, "finalizeWithdraw", [config]]]);
  await send(payer, "finalizeWithdraw", [config]);
  assert.deepEqual(await read("channels", id(config)), [1000n, 1000n]);
  const late = claim(config, { total: 1001n }).then((row) => [[row]]);
  await refuses([["a voucher after the withdrawal", "ClaimExceedsBalance", receiver, "claim", late]]);
});
