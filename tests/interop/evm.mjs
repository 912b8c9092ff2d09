// Owns the chain that the EVM interop tests run on: npm's anvil on a free port of loopback, with the tests' contracts
// at their canonical addresses (`contracts.mjs`).
//
// node evm.mjs [--chain-id N] [--block-time SECONDS] [--fund ADDRESS=AMOUNT] [--permit2 ADDRESS] [--wallet OWNER]
//   --fund      mints tokens (atomic units) to an account, and gives it gas
//   --permit2   lets Permit2 take an account's tokens without limit
//   --wallet    deploys an ERC-1271 wallet for an owner
// These three may be given many times.
// Without --block-time each transaction is mined at once. Prints one JSON line when all is ready:
//   {"rpc_url", "network", "chain_id", "addresses": {name: address}, "wallets": [{"owner", "address"}],
//    "accounts": [{"address", "key"}]}      the node's ten development accounts, which have gas
// It ends, and the chain with it, when its standard input closes.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createTestClient, defineChain, http, maxUint256, parseEther, publicActions, toHex, walletActions } from "viem";
import { mnemonicToAccount } from "viem/accounts";
import { addresses, contracts } from "./contracts.mjs";

const CPU = { x64: "amd64", arm64: "arm64" }[process.arch];
const BINARY = fileURLToPath(new URL(`node_modules/@foundry-rs/anvil-linux-${CPU}/bin/anvil`, import.meta.url));
const MNEMONIC = "test test test test test test test test test test test junk";

/** The node's development accounts, made of its well-known words. */
export const accounts = Array.from({ length: 10 }, (_, index) => {
  const account = mnemonicToAccount(MNEMONIC, { addressIndex: index });
  return Object.assign(account, { key: toHex(account.getHdKey().privateKey) });
});

/** A client that reads, sends, and has anvil's own calls too (`setCode`, `impersonateAccount`, `increaseTime`, ...). */
export function clientOf(rpcUrl, chainId, account) {
  const chain = defineChain({
    id: chainId,
    name: "test",
    nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
    rpcUrls: { default: { http: [rpcUrl] } },
  });
  const options = { account, chain, mode: "anvil", transport: http(rpcUrl), pollingInterval: 50, cacheTime: 0 };
  return createTestClient(options).extend(publicActions).extend(walletActions);
}

/** Starts the chain. `stop()` ends it. */
export async function startChain({ chainId = 84532, blockTime, ...furniture } = {}) {
  const built = contracts();
  const { rpcUrl, stop } = await startNode(chainId);
  try {
    const client = clientOf(rpcUrl, chainId, accounts[9]);
    const wallets = await furnish(client, built, furniture);
    // Last of all, so that what stands above did not have to wait for blocks.
    if (blockTime) await client.setIntervalMining({ interval: blockTime });
    return { rpcUrl, chainId, network: `eip155:${chainId}`, wallets, contracts: built, client, stop };
  } catch (error) {
    stop();
    throw error;
  }
}

/** Puts the contracts in their places, mints, approves and deploys; answers with the wallets. */
async function furnish(client, built, { funds = {}, permit2 = [], wallets = [] }) {
  for (const [name, address] of Object.entries(addresses)) {
    await client.setCode({ address, bytecode: built[name].runtime });
  }
  const token = { address: addresses.TestUSDC, abi: built.TestUSDC.abi };
  const done = async (hash) => client.waitForTransactionReceipt({ hash: await hash });
  for (const [address, amount] of Object.entries(funds)) {
    await client.setBalance({ address, value: parseEther("1000") });
    await done(client.writeContract({ ...token, functionName: "mint", args: [address, BigInt(amount)] }));
  }
  for (const account of permit2) {
    await client.impersonateAccount({ address: account });
    const args = [addresses.Permit2, maxUint256];
    await done(client.writeContract({ ...token, account, functionName: "approve", args }));
    await client.stopImpersonatingAccount({ address: account });
  }
  const deployed = [];
  for (const owner of wallets) {
    const { abi, bytecode } = built.TestWallet;
    const receipt = await done(client.deployContract({ abi, bytecode, args: [owner] }));
    deployed.push({ owner, address: receipt.contractAddress });
  }
  return deployed;
}

/** Runs the node. `setpriv` has the kernel end it with this process, should this process have no time to. */
async function startNode(chainId) {
  const flags = ["--host", "127.0.0.1", "--port", "0", "--chain-id", String(chainId)];
  const node = spawn("setpriv", ["--pdeathsig", "KILL", "--", BINARY, ...flags], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const stop = () => node.kill("SIGKILL");
  for await (const line of createInterface({ input: node.stdout })) {
    const address = line.match(/^Listening on (\S+)$/)?.[1];
    if (!address) continue;
    node.stdout.resume();
    return { rpcUrl: `http://${address}`, stop };
  }
  throw new Error("anvil ended before it listened");
}

/** Ends this process with its parent: when standard input closes. */
export function endWithInput(stop = () => {}) {
  process.stdin.on("close", () => {
    stop();
    process.exit(0);
  });
  process.stdin.resume();
}

async function main() {
  const many = { type: "string", multiple: true, default: [] };
  const one = { type: "string" };
  const options = { "chain-id": one, "block-time": one, fund: many, permit2: many, wallet: many };
  const { values } = parseArgs({ options });
  const chain = await startChain({
    chainId: Number(values["chain-id"] ?? 84532),
    blockTime: values["block-time"] && Number(values["block-time"]),
    funds: Object.fromEntries(values.fund.map((fund) => fund.split("="))),
    permit2: values.permit2,
    wallets: values.wallet,
  });
  endWithInput(chain.stop);
  const { rpcUrl: rpc_url, network, chainId: chain_id, wallets } = chain;
  const keys = accounts.map(({ address, key }) => ({ address, key }));
  console.log(JSON.stringify({ rpc_url, network, chain_id, addresses, wallets, accounts: keys }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
