// Makes `tests/vectors/evm/golden.json`: what viem computes for the typed data, signatures, calldata and transactions
// of the EVM schemes, for other implementations to agree with. `node golden.mjs` writes it, `node golden.mjs --check`
// fails unless it is what it would write. Every run makes the same.
//
// Numbers are decimal text, bytes lower-case hexadecimal. The file has two lists:
// `channels`, each of one channel:
//   chainId, verifyingContract, config (ChannelConfig), channelId
//   keys              private keys of payer, payerAuthorizer (null where the config names none) and receiverAuthorizer
//   voucher           {maxClaimableAmount, digest, signature}: by the payer authorizer, by the payer where there is none
//   claimBatch        {claims, digest, signature, calldata}: 1 to 5 claims, each {salt, channelId, maxClaimableAmount,
//                     totalClaimed, signature} on the channel's config with another salt, the first on the channel
//                     itself; `signature` is the receiver authorizer's, `calldata` that of claimWithSignature
//   refund            {nonce, amount, digest, signature, calldata}: refundWithSignature
//   settle            {calldata}
//   erc3009Deposit    {amount, validAfter, validBefore, salt, name, version, nonce, digest, signature, calldata}: the
//                     payer's ReceiveWithAuthorization under the token's domain, and deposit
//   permit2Deposit    {amount, nonce, deadline, digest, signature, calldata}: the payer's PermitWitnessTransferFrom, and
//                     deposit
// `transactions`, EIP-1559, signed: {key, from, chainId, nonce, maxPriorityFeePerGas, maxFeePerGas, gas, to, value,
//   data, signingHash, yParity, r, s, raw, hash}
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import {
  encodeFunctionData,
  hashTypedData,
  keccak256,
  numberToHex,
  parseTransaction,
  serializeTransaction,
  toBytes,
  zeroAddress,
} from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { addresses } from "./contracts.mjs";
import * as typed from "./typed.mjs";

const CHANNELS = 100;
const CHAINS = [1, 10, 137, 8453, 42161, 43114, 84532, 11155111, 324705682, 9007199254740991];
const file = new URL("../vectors/evm/golden.json", import.meta.url);

/** The next 32 bytes that look random and are the same in every run. */
let drawn = 0;
const bytes32 = () => keccak256(toBytes(`golden ${(drawn += 1)}`));
const below = (limit) => BigInt(bytes32()) % BigInt(limit);
const pick = (list) => list[Number(below(list.length))];
const address = () => `0x${bytes32().slice(26)}`;
const person = () => {
  const key = bytes32();
  return Object.assign(privateKeyToAccount(key), { key });
};

/** A number of at most so many bits: mostly an ordinary one, now and then the least or the greatest. */
function number(bits) {
  const ordinary = () => below(1_000_000_000_000n) + 1n;
  const any = () => below(2n ** BigInt(bits));
  return pick([ordinary, ordinary, ordinary, any, () => 1n, () => 2n ** BigInt(bits) - 1n])();
}

const call = (functionName, args) => encodeFunctionData({ abi: typed.abi, functionName, args });

/** A typed message's digest and its signature by `signer`. */
async function signed(message, signer) {
  return { digest: hashTypedData(message), signature: await signer.signTypedData(message) };
}

async function channel() {
  const chainId = pick(CHAINS);
  const [payer, authorizer, payerAuthorizer] = [person(), person(), person()];
  const voucherSigner = pick([payer, payerAuthorizer, undefined]);
  const config = {
    payer: payer.address,
    payerAuthorizer: voucherSigner?.address ?? zeroAddress,
    receiver: address(),
    receiverAuthorizer: authorizer.address,
    token: address(),
    withdrawDelay: 900 + Number(below(2_592_000 - 900 + 1)),
    salt: bytes32(),
  };
  const channelId = typed.channelId(chainId, config);
  const signer = voucherSigner ?? payer;
  const maxClaimableAmount = number(128);
  return {
    chainId,
    verifyingContract: addresses.BatchSettlement,
    config,
    channelId,
    keys: { payer: payer.key, payerAuthorizer: voucherSigner?.key ?? null, receiverAuthorizer: authorizer.key },
    voucher: { maxClaimableAmount, ...(await signed(typed.voucher(chainId, channelId, maxClaimableAmount), signer)) },
    claimBatch: await claimBatch(chainId, config, signer, authorizer),
    refund: await refund(chainId, config, channelId, authorizer),
    settle: { calldata: call("settle", [config.receiver, config.token]) },
    erc3009Deposit: await erc3009Deposit(chainId, config, channelId, payer),
    permit2Deposit: await permit2Deposit(chainId, config, channelId, payer),
  };
}

async function claimBatch(chainId, config, signer, authorizer) {
  const claims = [];
  for (let left = 1n + below(5); left > 0n; left -= 1n) {
    const salt = claims.length === 0 ? config.salt : bytes32();
    const channelId = typed.channelId(chainId, { ...config, salt });
    const maxClaimableAmount = number(128);
    const totalClaimed = below(maxClaimableAmount + 1n);
    const { signature } = await signed(typed.voucher(chainId, channelId, maxClaimableAmount), signer);
    claims.push({ salt, channelId, maxClaimableAmount, totalClaimed, signature });
  }
  const entries = claims.map(({ channelId, maxClaimableAmount, totalClaimed }) => ({
    channelId,
    maxClaimableAmount,
    totalClaimed,
  }));
  const { digest, signature } = await signed(typed.claimBatch(chainId, entries), authorizer);
  const rows = claims.map(({ salt, maxClaimableAmount, totalClaimed, signature }) => ({
    voucher: { channel: { ...config, salt }, maxClaimableAmount },
    signature,
    totalClaimed,
  }));
  return { claims, digest, signature, calldata: call("claimWithSignature", [rows, signature]) };
}

async function refund(chainId, config, channelId, authorizer) {
  const [nonce, amount] = [pick([0n, 1n, number(256)]), number(128)];
  const { digest, signature } = await signed(typed.refund(chainId, channelId, nonce, amount), authorizer);
  return {
    nonce,
    amount,
    digest,
    signature,
    calldata: call("refundWithSignature", [config, amount, nonce, signature]),
  };
}

async function erc3009Deposit(chainId, config, channelId, payer) {
  const amount = number(128);
  const [validAfter, validBefore] = [pick([0n, number(40)]), number(40)];
  const [salt, name] = [BigInt(bytes32()), pick(["USDC", "USD Coin", "Euro €"])];
  const nonce = typed.depositNonce(channelId, salt);
  const of = {
    token: config.token,
    from: config.payer,
    value: amount,
    validAfter,
    validBefore,
    nonce,
    name,
    version: "2",
  };
  const { digest, signature } = await signed(typed.receiveAuthorization(chainId, of), payer);
  const data = typed.erc3009Data({ validAfter, validBefore, salt, signature });
  const calldata = call("deposit", [config, amount, addresses.Erc3009Collector, data]);
  return { amount, validAfter, validBefore, salt, name, version: "2", nonce, digest, signature, calldata };
}

async function permit2Deposit(chainId, config, channelId, payer) {
  const [amount, nonce, deadline] = [number(128), number(256), number(40)];
  const of = { token: config.token, amount, nonce, deadline, channelId };
  const { digest, signature } = await signed(typed.permit2Deposit(chainId, of), payer);
  const data = typed.permit2Data({ nonce, deadline, signature });
  const calldata = call("deposit", [config, amount, addresses.Permit2Collector, data]);
  return { amount, nonce, deadline, digest, signature, calldata };
}

/** Transactions of every shape that RLP treats in a way of its own. */
async function transactions() {
  const to = addresses.BatchSettlement;
  const settle = call("settle", [address(), address()]);
  const shapes = [
    { nonce: 0, value: 0n, data: "0x" },
    { nonce: 1, value: 1n, data: "0x00" },
    { nonce: 127, value: 127n, data: "0x7f" },
    { nonce: 128, value: 128n, data: "0x80" },
    { nonce: 1024, value: 0n, data: settle },
    { nonce: 2 ** 40, value: 2n ** 96n, data: `0x${"ab".repeat(55)}` },
    { nonce: 7, value: 0n, data: `0x${"cd".repeat(56)}` },
    { nonce: 8, value: 0n, data: `0x${"ef".repeat(70_000 / 100)}` },
  ];
  const list = [];
  for (const shape of shapes) list.push(await transaction(person(), { to, ...shape }));
  // A number in RLP has no leading zeros: signatures whose r or s begins with one are the traps.
  for (const part of ["r", "s"]) {
    const signer = person();
    for (let nonce = 0; ; nonce += 1) {
      const made = await transaction(signer, { to, nonce, value: 0n, data: settle });
      if (!made[part].startsWith("0x00")) continue;
      list.push(made);
      break;
    }
  }
  return list;
}

async function transaction(signer, shape) {
  const fees = { maxPriorityFeePerGas: 1_000_000n, maxFeePerGas: 2_000_000_000n, gas: 300_000n };
  const fields = { chainId: 84532, ...fees, ...shape };
  const unsigned = { type: "eip1559", ...fields };
  const raw = await signer.signTransaction(unsigned);
  const { r, s, yParity } = parseTransaction(raw);
  const [signingHash, hash] = [keccak256(serializeTransaction(unsigned)), keccak256(raw)];
  const wide = (part) => numberToHex(BigInt(part), { size: 32 });
  return { key: signer.key, from: signer.address, ...fields, signingHash, yParity, r: wide(r), s: wide(s), raw, hash };
}

const plain = (_, value) => {
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  return typeof value === "string" && value.startsWith("0x") ? value.toLowerCase() : value;
};
const lines = (list) => list.map((item) => `    ${JSON.stringify(item, plain)}`).join(",\n");

const channels = [];
while (channels.length < CHANNELS) channels.push(await channel());
const lists = { channels, transactions: await transactions() };
const members = Object.entries(lists).map(([name, list]) => `  "${name}": [\n${lines(list)}\n  ]`);
const text = `{\n${members.join(",\n")}\n}\n`;
if (process.argv.includes("--check")) assert.ok(readFileSync(file, "utf8") === text, "run `node golden.mjs`");
else writeFileSync(file, text);
