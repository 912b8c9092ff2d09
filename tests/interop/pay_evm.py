"""The reference client for Python (PyPI x402), unchanged, paying by `batch-settlement` on an EVM chain:
`python pay_evm.py URL RPC_URL KEY CALLS`.

Prints one JSON line per call: status, body, and the decoded PAYMENT-RESPONSE (or null).
"""

import asyncio
import base64
import json
import sys

from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC


async def main(url: str, rpc_url: str, key: str, calls: str) -> None:
    signer = EthAccountSignerWithRPC(Account.from_key(key), rpc_url)
    client = x402Client()
    client.register("eip155:*", BatchSettlementEvmScheme(signer))
    async with x402HttpxClient(client, timeout=60) as http:
        for _ in range(int(calls)):
            response = await http.get(url)
            header = response.headers.get("PAYMENT-RESPONSE")
            settlement = json.loads(base64.b64decode(header)) if header else None
            answer = {"status": response.status_code, "body": response.text, "settlement": settlement}
            print(json.dumps(answer), flush=True)


asyncio.run(main(*sys.argv[1:]))
