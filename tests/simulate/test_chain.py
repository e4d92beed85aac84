"""The stand-in for nodes of Ethereum and Polygon: blocks, transfers, finality, reorganisations."""

from typing import Any

import pytest

from appliance.simulate.chain_blocks import TRANSFER
from appliance.simulate.twin import Twin
from tests.simulate.calls import Calls

USDC = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
TO = "0x" + "ab" * 20
TOPICS = [TRANSFER, None, ["0x" + TO[2:].rjust(64, "0")]]


async def rpc(call: Calls, method: str, *params: Any, path: str = "/") -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
    reply = await call("chain", "POST", path, body)
    assert reply.status == 200
    return reply.json.get("result", reply.json.get("error"))


async def logs(call: Calls, first: str = "0x1") -> list[dict[str, Any]]:
    head = int(await rpc(call, "eth_blockNumber"), 16)
    first = hex(head - 200) if first == "0x1" else first
    return await rpc(call, "eth_getLogs", {"fromBlock": first, "address": USDC, "topics": TOPICS})


async def pay(call: Calls, **more: Any) -> str:
    reply = await call.pay(service="chain", to=TO, amount="12.5", **more)
    assert reply.status == 200, reply.data
    return reply.json["transaction"]


async def test_a_payment_is_mined_with_the_next_block(call: Calls, twin: Twin) -> None:
    name = await pay(call)
    assert await logs(call) == []
    assert await rpc(call, "eth_getTransactionReceipt", name) is None
    await twin.advance(12)
    (log,) = await logs(call)
    assert (log["transactionHash"], int(log["data"], 16), log["removed"]) == (name, 12_500_000, False)
    assert log["address"] == USDC.lower()
    receipt = await rpc(call, "eth_getTransactionReceipt", name)
    assert (receipt["status"], receipt["blockHash"], receipt["logs"]) == ("0x1", log["blockHash"], [log])
    block = await rpc(call, "eth_getBlockByNumber", log["blockNumber"], False)
    assert (block["hash"], block["transactions"]) == (log["blockHash"], [name])


async def test_a_payment_is_final_after_64_blocks(call: Calls, twin: Twin) -> None:
    await pay(call)
    await twin.advance(12)
    (log,) = await logs(call)
    for blocks, is_final in ((63, False), (1, True)):
        await twin.advance(12 * blocks)
        final = await rpc(call, "eth_getBlockByNumber", "finalized", False)
        assert (int(final["number"], 16) >= int(log["blockNumber"], 16)) is is_final
    assert twin.truth()["services"]["chain"]["ethereum"]["transfers"][0]["state"] == "final"


async def test_blocks_are_joined_by_their_hashes(call: Calls, twin: Twin) -> None:
    before = await rpc(call, "eth_getBlockByNumber", "latest", False)
    await twin.advance(12)
    after = await rpc(call, "eth_getBlockByNumber", "latest", False)
    assert after["parentHash"] == before["hash"]
    assert int(after["timestamp"], 16) - int(before["timestamp"], 16) == 12
    assert await rpc(call, "eth_getBlockByNumber", hex(int(after["number"], 16) + 1), False) is None


@pytest.mark.parametrize(("kind", "is_back"), [("reorg", True), ("reorg_drop", False)])
async def test_a_reorganisation_moves_or_drops_a_payment(
    call: Calls, twin: Twin, kind: str, is_back: bool
) -> None:
    name = await pay(call)
    await twin.advance(24)
    (before,) = await logs(call)
    await call.fault(service="chain", kind=kind, blocks=3)
    assert await logs(call) == []
    assert await rpc(call, "eth_getTransactionReceipt", name) is None
    block = await rpc(call, "eth_getBlockByNumber", before["blockNumber"], False)
    assert block["hash"] != before["blockHash"]
    parent = await rpc(call, "eth_getBlockByNumber", hex(int(before["blockNumber"], 16) + 1), False)
    assert parent["parentHash"] == block["hash"]
    await twin.advance(12)
    after = await logs(call)
    assert [each["transactionHash"] for each in after] == ([name] if is_back else [])
    assert bool(twin.truth()["services"]["chain"]["ethereum"]["dropped"]) is not is_back


async def test_old_blocks_stay_as_they_are(call: Calls, twin: Twin) -> None:
    old = hex(int(await rpc(call, "eth_blockNumber"), 16) - 10)
    before = await rpc(call, "eth_getBlockByNumber", old, False)
    for _ in range(3):
        await call.fault(service="chain", kind="reorg", blocks=2)
    assert await rpc(call, "eth_getBlockByNumber", old, False) == before


async def test_a_failed_transaction_has_no_log(call: Calls, twin: Twin) -> None:
    name = await pay(call, is_ok=False)
    await twin.advance(12)
    assert await logs(call) == []
    receipt = await rpc(call, "eth_getTransactionReceipt", name)
    assert (receipt["status"], receipt["logs"]) == ("0x0", [])


async def test_a_token_says_what_it_is(call: Calls, twin: Twin) -> None:
    assert int(await rpc(call, "eth_call", {"to": USDC, "data": "0x313ce567"}, "latest"), 16) == 6
    symbol = await rpc(call, "eth_call", {"to": USDC, "data": "0x95d89b41"}, "latest")
    assert bytes.fromhex(symbol[2:])[64:68] == b"USDC"
    await pay(call)
    await twin.advance(12)
    data = "0x70a08231" + TO[2:].rjust(64, "0")
    assert int(await rpc(call, "eth_call", {"to": USDC, "data": data}, "latest"), 16) == 12_500_000
    assert await rpc(call, "eth_call", {"to": TO, "data": "0x313ce567"}, "latest") == "0x"


async def test_polygon_is_another_chain(call: Calls, twin: Twin) -> None:
    assert int(await rpc(call, "eth_chainId"), 16) == 1
    assert int(await rpc(call, "eth_chainId", path="/polygon"), 16) == 137
    await pay(call, network="polygon", token="0x2791Bca1f2de4661ED88A30C99A7a9449Aa84174")
    await twin.advance(2)
    found = await rpc(call, "eth_getLogs", {"fromBlock": "latest", "topics": [TRANSFER]}, path="/polygon")
    assert [log["address"] for log in found] == ["0x2791bca1f2de4661ed88a30c99a7a9449aa84174"]
    assert await logs(call) == []


async def test_a_node_lags_and_does_not_know_finalized(call: Calls, twin: Twin) -> None:
    head = int(await rpc(call, "eth_blockNumber"), 16)
    await call.fault(service="chain", kind="behind", blocks=20)
    await call.fault(service="chain", kind="no_finalized")
    assert int(await rpc(call, "eth_blockNumber"), 16) == head - 20
    assert (await rpc(call, "eth_getBlockByNumber", "finalized", False))["code"] == -32602
    await call("chain", "DELETE", "/_fault")
    assert int(await rpc(call, "eth_blockNumber"), 16) == head


async def test_faults_are_for_one_method(call: Calls) -> None:
    await call.fault(service="chain", kind="too_many_logs")
    await call.fault(service="chain", kind="rpc_error", route="eth_chainId")
    assert await rpc(call, "eth_blockNumber")
    assert (await rpc(call, "eth_chainId"))["code"] == -32603
    assert (await rpc(call, "eth_getLogs", {}))["code"] == -32005
    assert await rpc(call, "eth_getLogs", {}) == []


async def test_calls_come_in_lists(call: Calls) -> None:
    calls = [{"id": number, "method": "eth_chainId"} for number in range(3)]
    replies = (await call("chain", "POST", "/", calls)).json
    assert [(each["id"], each["result"]) for each in replies] == [(0, "0x1"), (1, "0x1"), (2, "0x1")]
    assert (await call("chain", "POST", "/", [{}] * 101)).json["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("eth_sendRawTransaction", [], -32601),
        ("eth_getBlockByNumber", [], -32602),
        ("eth_getBlockByNumber", ["newest"], -32602),
        ("eth_getBlockByNumber", ["0x01"], -32602),
        ("eth_getLogs", [{"fromBlock": "0x0"}], -32005),
        ("eth_getLogs", [{"address": "0x1"}], -32602),
        ("eth_getLogs", [{"topics": [None] * 5}], -32602),
        ("eth_getLogs", ["x"], -32602),
        ("eth_getTransactionReceipt", ["0x1"], -32602),
        ("eth_call", [{"to": 1}], -32602),
        ("eth_call", [{"to": USDC, "data": "0x00000000"}], 3),
        ("eth_chainId", {}, None),
    ],
)
async def test_a_wrong_call_is_refused_in_rpcs_form(call: Calls, method, params, code) -> None:
    reply = await call("chain", "POST", "/", {"id": 9, "method": method, "params": params})
    assert reply.json["id"] == 9
    assert reply.json.get("error", {}).get("code") == code


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"to": "0x12"}, "`to` is"),
        ({"amount": 12.5}, "`amount` is"),
        ({"amount": "-1"}, "`amount` is"),
        ({"amount": "0.0000001"}, "up to 6 decimals"),
        ({"amount": "1e999"}, "`amount` is"),
        ({"amount": "NaN"}, "`amount` is"),
        ({"network": "bitcoin"}, "allowed are ethereum, polygon"),
        ({"token": TO}, "`token` is"),
        ({"is_ok": "yes"}, "`is_ok` is"),
    ],
)
async def test_a_wrong_payment_is_refused_clearly(call: Calls, twin: Twin, change, part) -> None:
    reply = await call.pay(**{"service": "chain", "to": TO, "amount": "1", **change})
    assert reply.status == 400
    assert part in reply.json["error"]["message"]
    assert twin.truth()["services"]["chain"]["ethereum"]["transfers"] == []
