"""The reference client for Python (PyPI x402), unchanged, paying by `batch-settlement` on an EVM chain. It is told what
to do by JSON lines on standard input, as `pay_evm.mjs` is, and answers in the same words:

    python pay_evm.py '{"key": "0x...", "rpc_url", "deposit"?}'

Its commands: pay, together, replay, tamper, refund, forget. It ends when its standard input closes.
"""

import asyncio
import base64
import json
import sys

import httpx
from eth_account import Account
from x402 import x402Client
from x402.http.clients import x402_httpx_transport
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.batch_settlement.client.config import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.refund import RefundOptions
from x402.mechanisms.evm.signers import EthAccountSignerWithRPC

# The order of secp256k1.
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def decode(header):
    return json.loads(base64.b64decode(header)) if header else None


def encode(value):
    return base64.b64encode(json.dumps(value).encode()).decode()


def spoil(signature, how):
    r, s, v = signature[2:66], int(signature[66:130], 16), int(signature[130:], 16)
    s, v = {"flip": (s ^ 1, v), "high-s": (ORDER - s, 55 - v), "v-0-1": (s, v - 27)}[how]
    return f"0x{r}{s:064x}{v:02x}"


def overlay(value, over):
    """Lays `over` on `value`, member by member."""
    if not isinstance(over, dict):
        return over
    laid = dict(value)
    for name, inner in over.items():
        spoils = name == "signature" and not inner.startswith("0x")
        laid[name] = spoil(value[name], inner) if spoils else overlay(laid.get(name), inner)
    return laid


class Wire(httpx.AsyncHTTPTransport):
    """Sends what the client sends, but for what `change` lays over its next payment, and keeps it."""

    def __init__(self):
        super().__init__()
        self.change = None
        self.sent = None

    async def handle_async_request(self, request):
        if header := request.headers.get("PAYMENT-SIGNATURE"):
            if self.change:
                request.headers["PAYMENT-SIGNATURE"] = encode(overlay(decode(header), self.change))
                self.change = None
            self.sent = request
        return await super().handle_async_request(request)


class Payer:
    def __init__(self, settings):
        self.settings = settings
        self.wire = Wire()
        self.forget()

    def forget(self):
        signer = EthAccountSignerWithRPC(Account.from_key(self.settings["key"]), self.settings["rpc_url"])
        options = BatchSettlementEvmSchemeOptions(deposit_strategy=lambda _: self.settings.get("deposit"))
        self.scheme = BatchSettlementEvmScheme(signer, options)
        client = x402Client()
        client.register("eip155:*", self.scheme)
        self.http = httpx.AsyncClient(transport=x402_httpx_transport(client, self.wire), timeout=60)

    def answer(self, response):
        headers = response.headers
        return {
            "status": response.status_code,
            "body": response.text,
            "payment": self.payment(),
            "settlement": decode(headers.get("PAYMENT-RESPONSE")),
            "required": decode(headers.get("PAYMENT-REQUIRED")),
        }

    def payment(self):
        return decode(self.wire.sent.headers["PAYMENT-SIGNATURE"]) if self.wire.sent else None

    async def pay(self, url):
        return self.answer(await self.http.get(url))

    async def carry_out(self, command):
        match command["do"]:
            case "pay":
                return await self.pay(command["url"])
            case "together":
                calls = [self.pay(command["url"]) for _ in range(command["times"])]
                return {"answers": await asyncio.gather(*calls)}
            case "replay":
                headers = {"PAYMENT-SIGNATURE": self.wire.sent.headers["PAYMENT-SIGNATURE"]}
                async with httpx.AsyncClient(timeout=60) as plain:
                    return self.answer(await plain.get(self.wire.sent.url, headers=headers))
            case "tamper":
                self.wire.change = command["change"]
                return {}
            case "refund":
                return await asyncio.to_thread(self.refund, command["url"], command.get("amount"))
            case "forget":
                self.forget()
                return {}

    def refund(self, url, amount):
        settlement = self.scheme.refund(url, RefundOptions(amount=amount))
        return {"settlement": json.loads(settlement.model_dump_json(by_alias=True))}


async def main(settings):
    payer = Payer(settings)
    for line in iter(sys.stdin.readline, ""):
        try:
            result = await payer.carry_out(json.loads(line))
        except Exception as error:
            result = {"error": repr(error)}
        print(json.dumps(result), flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
