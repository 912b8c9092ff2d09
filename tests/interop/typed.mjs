// Owns the typed data of the scheme `batch-settlement` on EVM, as the specification words it, and the calls of its
// contract.
import { encodeAbiParameters, hashTypedData, keccak256, numberToHex, parseAbi } from "viem";
import { addresses } from "./contracts.mjs";

const CONFIG =
  "address payer, address payerAuthorizer, address receiver, address receiverAuthorizer, address token, uint40 withdrawDelay, bytes32 salt";

const ERRORS = [
  ["InvalidChannel", "WithdrawDelayOutOfRange", "ZeroDeposit", "InvalidCollector", "DepositOverflow"],
  ["DepositCollectionFailed", "EmptyBatch", "NotAuthorizedToClaim", "NotReceiverAuthorizer", "ClaimExceedsCeiling"],
  ["ClaimExceedsBalance", "InvalidSignature", "NothingToWithdraw", "WithdrawalAlreadyPending"],
  ["WithdrawAmountExceedsAvailable", "NotAuthorizedToFinalizeWithdraw", "WithdrawalNotPending"],
  ["WithdrawDelayNotElapsed", "NotAuthorizedToRefund", "ZeroRefund", "InvalidRefundNonce"],
].flat();

/** The calls that a client, a server or a facilitator makes, and the contract's refusals. */
export const abi = parseAbi([
  `struct ChannelConfig { ${CONFIG.replaceAll(",", ";")}; }`,
  "struct Voucher { ChannelConfig channel; uint128 maxClaimableAmount; }",
  "struct VoucherClaim { Voucher voucher; bytes signature; uint128 totalClaimed; }",
  "function deposit(ChannelConfig config, uint128 amount, address collector, bytes collectorData)",
  "function claimWithSignature(VoucherClaim[] voucherClaims, bytes authorizerSignature)",
  "function settle(address receiver, address token)",
  "function refundWithSignature(ChannelConfig config, uint128 amount, uint256 nonce, bytes receiverAuthorizerSignature)",
  "function initiateWithdraw(ChannelConfig config, uint128 amount)",
  "function finalizeWithdraw(ChannelConfig config)",
  ...ERRORS.map((name) => `error ${name}()`),
]);

/** The fields of a struct, of Solidity's words for them. */
export const fields = (text) =>
  text
    .split(",")
    .map((field) => field.trim().split(" "))
    .map(([type, name]) => ({ type, name }));
const TYPES = {
  ChannelConfig: fields(CONFIG),
  Voucher: fields("bytes32 channelId, uint128 maxClaimableAmount"),
  Refund: fields("bytes32 channelId, uint256 nonce, uint128 amount"),
  ClaimBatch: fields("ClaimEntry[] claims"),
  ClaimEntry: fields("bytes32 channelId, uint128 maxClaimableAmount, uint128 totalClaimed"),
};

function typed(chainId, primaryType, message, types = [primaryType]) {
  const domain = { name: "x402 Batch Settlement", version: "1", chainId, verifyingContract: addresses.BatchSettlement };
  return { domain, types: Object.fromEntries(types.map((type) => [type, TYPES[type]])), primaryType, message };
}

/** A channel's id: the digest of its configuration. */
export const channelId = (chainId, config) => hashTypedData(typed(chainId, "ChannelConfig", config));

/** What a payer signs for each request. */
export const voucher = (chainId, channelId, maxClaimableAmount) =>
  typed(chainId, "Voucher", { channelId, maxClaimableAmount });

/** What a receiver's authorizer signs for a batch of `{channelId, maxClaimableAmount, totalClaimed}`. */
export const claimBatch = (chainId, claims) => typed(chainId, "ClaimBatch", { claims }, ["ClaimBatch", "ClaimEntry"]);

/** What a receiver's authorizer signs for a refund. */
export const refund = (chainId, channelId, nonce, amount) => typed(chainId, "Refund", { channelId, nonce, amount });

/** The nonce of a deposit by EIP-3009: it names the channel. */
export const depositNonce = (channelId, salt) =>
  keccak256(encodeAbiParameters([{ type: "bytes32" }, { type: "uint256" }], [channelId, salt]));

/** What a payer signs for a deposit by EIP-3009. */
export function receiveAuthorization(chainId, { token, from, value, validAfter, validBefore, nonce, name, version }) {
  return {
    domain: { name, version, chainId, verifyingContract: token },
    types: {
      ReceiveWithAuthorization: fields(
        "address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce",
      ),
    },
    primaryType: "ReceiveWithAuthorization",
    message: { from, to: addresses.Erc3009Collector, value, validAfter, validBefore, nonce },
  };
}

/** What a payer signs for a deposit by Permit2. */
export function permit2Deposit(chainId, { token, amount, nonce, deadline, channelId }) {
  return {
    domain: { name: "Permit2", chainId, verifyingContract: addresses.Permit2 },
    types: {
      PermitWitnessTransferFrom: fields(
        "TokenPermissions permitted, address spender, uint256 nonce, uint256 deadline, DepositWitness witness",
      ),
      TokenPermissions: fields("address token, uint256 amount"),
      DepositWitness: fields("bytes32 channelId"),
    },
    primaryType: "PermitWitnessTransferFrom",
    message: {
      permitted: { token, amount },
      spender: addresses.Permit2Collector,
      nonce,
      deadline,
      witness: { channelId },
    },
  };
}

/** `collectorData` of a deposit by EIP-3009. */
export const erc3009Data = ({ validAfter, validBefore, salt, signature }) =>
  encodeAbiParameters(fields("uint256 a, uint256 b, uint256 c, bytes d"), [validAfter, validBefore, salt, signature]);

/** `collectorData` of a deposit by Permit2; `permit` is an encoded EIP-2612 permit. */
export const permit2Data = ({ nonce, deadline, signature, permit = "0x" }) =>
  encodeAbiParameters(fields("uint256 a, uint256 b, bytes c, bytes d"), [nonce, deadline, signature, permit]);

const ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;

/** A signature that no strict check takes: "flip" one bit, the "high-s" twin, or `v` as 0 or 1 ("v-0-1"). */
export function spoil(signature, how) {
  const [r, s, v] = [
    signature.slice(2, 66),
    BigInt(`0x${signature.slice(66, 130)}`),
    parseInt(signature.slice(130), 16),
  ];
  const join = (s, v) => `0x${r}${numberToHex(s, { size: 32 }).slice(2)}${v.toString(16).padStart(2, "0")}`;
  if (how === "flip") return join(s ^ 1n, v);
  if (how === "high-s") return join(ORDER - s, 55 - v);
  if (how === "v-0-1") return join(s, v - 27);
  throw new Error(`no such spoiling: ${how}`);
}
