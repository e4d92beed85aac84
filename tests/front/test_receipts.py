"""The request log over HTTP: filters, pages, and receipts as they come."""

import asyncio
import json
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, NotFound
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt, Receipts
from appliance.front.receipts import ReceiptHandlers
from tests.front.requests import json_of, make_request

DIGEST = "0123456789ab"


@pytest.fixture
def receipts() -> Receipts:
    made = Receipts()
    for number in range(102):
        receipt = Receipt(f"req_{number}", at_s=1_800_000_000.0 - 101 + number, model="big", status=200)
        receipt.finish = Finish.DONE
        made.add(receipt)
    made.add(Receipt("odd", 1_800_000_000.0, model="small", status=404, key=DIGEST, finish=Finish.ERROR))
    return made


@pytest.fixture
def handlers(receipts: Receipts) -> ReceiptHandlers:
    return ReceiptHandlers(receipts, clock=FakeClock())


async def listed(handlers: ReceiptHandlers, query: str = "") -> Any:
    return json_of(await handlers.receipts(make_request(query=query)))


async def test_receipts_are_listed_newest_first_and_shown(handlers: ReceiptHandlers) -> None:
    body = await listed(handlers)
    assert (len(body["receipts"]), body["receipts"][0]["id"], body["kept"]) == (100, "odd", 103)
    assert json_of(await handlers.receipt(make_request(id="req_7")))["id"] == "req_7"
    with pytest.raises(NotFound, match="There is no receipt 'x'; only the last 1000 are stored"):
        await handlers.receipt(make_request(id="x"))


async def test_pages_give_every_receipt_once(handlers: ReceiptHandlers) -> None:
    ids: list[str] = []
    query = "limit=40"
    for _ in range(3):
        body = await listed(handlers, query)
        ids += [receipt["id"] for receipt in body["receipts"]]
        query = f"limit=40&before={body['next']}"
    assert body["next"] is None
    assert ids == ["odd", *(f"req_{number}" for number in range(101, -1, -1))]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("model=small", 1),
        ("model=none-such", 0),
        ("status=404", 1),
        ("status=4xx", 1),
        ("status=2XX&limit=1000", 102),
        (f"key={DIGEST}", 1),
        (f"key={DIGEST}ffff", 1),
        ("key=none&limit=1000", 102),
        ("finish=error", 1),
        ("finish=cut_off", 0),
        ("since=10s", 12),
        ("since=1799999995", 7),
        ("since=2027-01-15T07:59:55Z&until=2027-01-15T07:59:58Z", 3),
        ("model=big&status=404", 0),
    ],
)
async def test_filters(handlers: ReceiptHandlers, query: str, count: int) -> None:
    assert len((await listed(handlers, query))["receipts"]) == count


@pytest.mark.parametrize(
    ("query", "param", "text"),
    [
        ("limit=0", "limit", "from 1 to 1000, not '0'"),
        ("limit=x", "limit", "from 1 to 1000, not 'x'"),
        ("status=999", "status", "not '999'"),
        ("finish=well", "finish", "done, client_left, cut_off, error, not 'well'"),
        ("since=yesterday", "since", "not 'yesterday'"),
        ("since=99999999999999d", "since", "must be a time"),
        ("modell=x", "modell", "There is no query parameter 'modell' here; there are limit, before, model"),
        ("model=a&model=b", "model", "twice"),
    ],
)
async def test_wrong_queries_are_refused(
    handlers: ReceiptHandlers, query: str, param: str, text: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await listed(handlers, query)
    assert refused.value.param == param
    assert text in refused.value.message


async def test_a_key_given_by_mistake_is_not_repeated(handlers: ReceiptHandlers) -> None:
    with pytest.raises(Invalid) as refused:
        await listed(handlers, "key=sk-a-real-key")
    assert "sk-a-real-key" not in refused.value.message
    assert "never the key itself" in refused.value.message


async def test_the_page_behind_an_unknown_receipt_is_refused(handlers: ReceiptHandlers) -> None:
    with pytest.raises(NotFound, match="There is no receipt 'gone'"):
        await listed(handlers, "before=gone")


async def test_the_feed_sends_new_receipts_that_fit_and_ends(
    handlers: ReceiptHandlers, receipts: Receipts
) -> None:
    response = await handlers.stream(make_request(query="model=small&latest=5"))
    assert response.pieces is not None
    pieces: list[bytes] = []

    async def read() -> None:
        async for piece in response.pieces:
            pieces.append(piece)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for name in ("first", "second"):
        receipts.add(Receipt(f"{name}_other", model="big"))
        receipts.add(Receipt(name, model="small"))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    receipts.close()
    await asyncio.wait_for(reading, 5)
    events = [json.loads(piece.split(b"data: ")[1]) for piece in pieces[1:]]
    assert [event.get("id") for event in events] == ["odd", "first", "second", None]
    assert pieces[-1].startswith(b"event: shutdown")
