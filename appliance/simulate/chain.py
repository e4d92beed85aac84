"""Nodes of Ethereum and Polygon, as far as a watcher of payments asks them."""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

from appliance.base.errors import Invalid
from appliance.base.money import shorten
from appliance.simulate.answers import TwinAnswer, TwinRequest, TwinRoute
from appliance.simulate.chain_blocks import NETWORKS, Network, SimulatedChain, Token
from appliance.simulate.faults import Faults
from appliance.simulate.twin_clock import TwinClock

ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
WORD = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
QUANTITY = re.compile(r"0x(0|[1-9a-fA-F][0-9a-fA-F]{0,15})", re.ASCII)
SENDER = "0x" + "5e" * 20
MAX_BATCH = 100
MAX_RANGE = 10_000  # blocks of one eth_getLogs; nodes differ
MAX_ADDRESSES = 1000
DECIMALS, SYMBOL, BALANCE_OF = "0x313ce567", "0x95d89b41", "0x70a08231"  # selectors of ERC-20
METHODS = (
    "eth_chainId",
    "eth_blockNumber",
    "eth_getBlockByNumber",
    "eth_getLogs",
    "eth_getTransactionReceipt",
    "eth_call",
    "net_version",
    "web3_clientVersion",
)


class RpcError(Exception):
    """A refusal of JSON-RPC: its code and its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ChainService:
    """The stand-in for nodes: Ethereum at /, Polygon at /polygon.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
    """

    name = "chain"
    calls: tuple[str, ...] = METHODS

    def __init__(self, clock: TwinClock, faults: Faults) -> None:
        self._faults = faults
        self.chains = {network.name: SimulatedChain(network, clock) for network in NETWORKS}

    def routes(self) -> list[TwinRoute]:
        """Return its addresses."""
        return [
            TwinRoute("rpc", "POST", "/", partial(self.answer, "ethereum")),
            TwinRoute("rpc", "POST", "/polygon", partial(self.answer, "polygon")),
        ]

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Do nothing: keys of nodes are in their addresses."""

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in JSON-RPC's form."""
        return {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": text}}

    def url(self, origin: str) -> str:
        """Return the address of Ethereum's node."""
        return f"{origin}/"

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it."""
        return {"CRYPTO_RPC_ETHEREUM": f"{origin}/", "CRYPTO_RPC_POLYGON": f"{origin}/polygon"}

    def settle(self) -> None:
        """Reorganise the chains where a fault says so."""
        while (fault := self._faults.take(self.name, "state", ("reorg", "reorg_drop"))) is not None:
            for chain in self.chains.values():
                chain.reorganise(int(fault.parameters["blocks"]), is_dropping=fault.kind == "reorg_drop")

    def truth(self) -> dict[str, Any]:
        """Return what was really paid, and what of it is final."""
        return {name: self._truth_of(chain) for name, chain in self.chains.items()}

    def _truth_of(self, chain: SimulatedChain) -> dict[str, Any]:
        final = chain.head - chain.network.finality
        rows = [
            {
                "transaction": each.hash,
                "token": each.token,
                "to": each.to,
                "value": str(each.value),
                "block": each.block,
                "is_ok": each.is_ok,
                "state": "final"
                if each.block <= final
                else "mined"
                if each.block <= chain.head
                else "pending",
            }
            for each in chain.transfers
        ]
        return {
            "chain_id": chain.network.chain_id,
            "head": chain.head,
            "finalized": final,
            "transfers": rows,
            "dropped": [each.hash for each in chain.dropped],
        }

    # ---- paying

    def pay(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send tokens: `{"to": "0x…", "amount": "12.5", "network": "ethereum", "token": "0x…"}`.

        Raises:
            Invalid: A field is wrong.
        """
        name = body.get("network", "ethereum")
        if not isinstance(name, str) or name not in self.chains:
            raise Invalid(
                f"`network` is {shorten(name)}; allowed are {', '.join(self.chains)}.", param="network"
            )
        chain = self.chains[name]
        to, sender = (
            self._address(body, field, default) for field, default in (("to", None), ("from", SENDER))
        )
        token = self._token(chain.network, body.get("token"))
        value = _smallest(body.get("amount"), token)
        is_ok = body.get("is_ok", True)
        if not isinstance(is_ok, bool):
            raise Invalid(f"`is_ok` is {shorten(is_ok)}; allowed are true and false.", param="is_ok")
        made = chain.pay(token.address, to, value, sender=sender, is_ok=is_ok)
        return {"transaction": made.hash, "token": token.address, "value": str(value), "block": made.block}

    def _address(self, body: dict[str, Any], name: str, default: str | None) -> str:
        value = body.get(name, default)
        if not isinstance(value, str) or not ADDRESS.fullmatch(value):
            raise Invalid(
                f"`{name}` is {shorten(value)}; allowed is an address, 0x and 40 digits.", param=name
            )
        return value.lower()

    def _token(self, network: Network, wanted: Any) -> Token:
        for token in network.tokens:
            if wanted is None or (isinstance(wanted, str) and wanted.lower() == token.address):
                return token
        known = ", ".join(token.address for token in network.tokens)
        raise Invalid(f"`token` is {shorten(wanted)}; {network.name} has {known}.", param="token")

    # ---- JSON-RPC

    async def answer(self, network: str, request: TwinRequest) -> TwinAnswer:
        """Answer one call, or a list of them."""
        chain, value = self.chains[network], request.value
        if not isinstance(value, list):
            return TwinAnswer(self._call(chain, value))
        if not 1 <= len(value) <= MAX_BATCH:
            return TwinAnswer(_failed(None, -32600, f"a list of calls has 1 to {MAX_BATCH} of them"))
        return TwinAnswer([self._call(chain, each) for each in value])

    def _call(self, chain: SimulatedChain, call: Any) -> dict[str, Any]:
        if not isinstance(call, dict) or not isinstance(call.get("method"), str):
            return _failed(None, -32600, "Invalid Request")
        number, method, params = call.get("id"), call["method"], call.get("params") or []
        if method not in METHODS:
            return _failed(number, -32601, f"the method {method[:80]} does not exist (simulated)")
        if not isinstance(params, list):
            return _failed(number, -32602, "params must be a list")
        if self._faults.take(self.name, method, ("rpc_error",)) is not None:
            return _failed(number, -32603, "a simulated fault")
        try:
            return {"jsonrpc": "2.0", "id": number, "result": self._result(chain, method, params)}
        except RpcError as exc:
            return _failed(number, exc.code, str(exc))

    def _result(self, chain: SimulatedChain, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_chainId":
                return hex(chain.network.chain_id)
            case "net_version":
                return str(chain.network.chain_id)
            case "web3_clientVersion":
                return "appliance-simulate/1 (simulated)"
            case "eth_blockNumber":
                return hex(self._head(chain))
            case "eth_getBlockByNumber":
                return self._block(chain, _param(params, 0))
            case "eth_getLogs":
                return self._logs(chain, _param(params, 0))
            case "eth_getTransactionReceipt":
                return self._receipt(chain, _param(params, 0))
        return self._contract_call(chain, _param(params, 0))

    def _head(self, chain: SimulatedChain) -> int:
        fault = self._faults.find(self.name, "behind")
        return chain.head - (int(fault.parameters["blocks"]) if fault is not None else 0)

    def _number(self, chain: SimulatedChain, tag: Any) -> int:
        """Return the block that a tag, or a number in hexadecimal, names."""
        head = self._head(chain)
        if tag in ("finalized", "safe"):
            if self._faults.find(self.name, "no_finalized") is not None:
                raise RpcError(-32602, f"invalid block tag {tag}")
            return head - chain.network.finality
        tags = {"latest": head, "pending": head, "earliest": 0}
        if isinstance(tag, str) and tag in tags:
            return tags[tag]
        if not isinstance(tag, str) or not QUANTITY.fullmatch(tag):
            raise RpcError(-32602, f"invalid block number {shorten(tag)}")
        return int(tag, 16)

    def _block(self, chain: SimulatedChain, tag: Any) -> dict[str, Any] | None:
        number = self._number(chain, tag)
        if number > self._head(chain):
            return None
        return {
            "number": hex(number),
            "hash": chain.hash_of(number),
            "parentHash": chain.hash_of(number - 1) if number else "0x" + "00" * 32,
            "timestamp": hex(chain.time_of(number)),
            "transactions": [each.hash for each in chain.transfers if each.block == number],
        }

    def _logs(self, chain: SimulatedChain, wanted: Any) -> list[dict[str, Any]]:
        if not isinstance(wanted, dict):
            raise RpcError(-32602, "the filter must be an object")
        first = self._number(chain, wanted.get("fromBlock", "latest"))
        last = min(self._number(chain, wanted.get("toBlock", "latest")), self._head(chain))
        if self._faults.take(self.name, "eth_getLogs", ("too_many_logs",)) is not None:
            raise RpcError(-32005, "query returned more than 10000 results (a simulated fault)")
        if last - first >= MAX_RANGE:
            raise RpcError(-32005, f"the range of blocks is too large; allowed are {MAX_RANGE}")
        addresses = _choices(wanted.get("address"), ADDRESS, "address")
        topics = wanted.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise RpcError(-32602, "topics must be a list of at most 4")
        positions = [_choices(each, WORD, "topics") for each in topics]
        return [
            log
            for log in chain.logs(first, last)
            if (addresses is None or log["address"] in addresses)
            and len(positions) <= len(log["topics"])
            and all(
                each is None or topic in each for each, topic in zip(positions, log["topics"], strict=False)
            )
        ]

    def _receipt(self, chain: SimulatedChain, name: Any) -> dict[str, Any] | None:
        if not isinstance(name, str) or not WORD.fullmatch(name):
            raise RpcError(-32602, f"invalid hash {shorten(name)}")
        found = chain.find(name.lower(), head=self._head(chain))
        if found is None:
            return None
        return {
            "transactionHash": found.hash,
            "transactionIndex": hex(chain.index_of(found)),
            "blockNumber": hex(found.block),
            "blockHash": chain.hash_of(found.block),
            "from": found.sender,
            "to": found.token,
            "status": "0x1" if found.is_ok else "0x0",
            "logs": [chain.log_of(found)] if found.is_ok else [],
        }

    def _contract_call(self, chain: SimulatedChain, call: Any) -> str:
        to, data = (
            (call.get("to"), call.get("data") or call.get("input")) if isinstance(call, dict) else ("", "")
        )
        if not isinstance(to, str) or not isinstance(data, str):
            raise RpcError(-32602, "the call must have `to` and `data`")
        token = next((each for each in chain.network.tokens if each.address == to.lower()), None)
        if token is None:
            return "0x"
        match data[:10].lower():
            case selector if selector == DECIMALS:
                return f"0x{token.decimals:064x}"
            case selector if selector == SYMBOL:
                text = token.symbol.encode()
                return f"0x{32:064x}{len(text):064x}{text.hex().ljust(64, '0')}"
            case selector if selector == BALANCE_OF and len(data) == 74:
                owner = f"0x{data[-40:].lower()}"
                return f"0x{chain.balance(token.address, owner, head=self._head(chain)):064x}"
        raise RpcError(3, "execution reverted (simulated)")


def _smallest(value: Any, token: Token) -> int:
    """Return an amount of tokens in the smallest unit."""
    try:
        amount = Decimal(value) if isinstance(value, str) and len(value) <= 40 else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    scaled = amount.scaleb(token.decimals) if amount.is_finite() else amount
    if not scaled.is_finite() or scaled != scaled.to_integral_value() or not 0 <= scaled < 10**30:
        raise Invalid(
            f"`amount` is {shorten(value)}; allowed is a text such as 12.5, up to {token.decimals} decimals.",
            param="amount",
        )
    return int(scaled)


def _param(params: list[Any], place: int) -> Any:
    if len(params) <= place:
        raise RpcError(-32602, f"missing value for required argument {place}")
    return params[place]


def _choices(value: Any, form: re.Pattern[str], name: str) -> frozenset[str] | None:
    """Return the values that fit; None = any."""
    if value is None:
        return None
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_ADDRESSES or not all(
        isinstance(each, str) and form.fullmatch(each) for each in values
    ):
        raise RpcError(-32602, f"invalid {name}")
    return frozenset(each.lower() for each in values) if values else None


def _failed(number: Any, code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": text}}
