"""A user's requests are admitted, held for, and charged by what the engine counted, in every shape."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.actor import ANYBODY, Actor, KeyFacts, Limits, UserFacts
from appliance.accounts.key_caps import KeyCap
from appliance.accounts.limits import RateLimited, RateLimits
from appliance.accounts.prices import Price, PriceBook
from appliance.base import jsons
from appliance.base.errors import Forbidden, PaymentRequired, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.pool import Pool
from appliance.engines.receipts import Receipt
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.types import EngineReply, EngineRequest, Operation, RequestOptions
from appliance.front.spending import Spending, estimate_request, read_max_tokens
from tests.accounts.metering import PRICE, Bench

USER = UserFacts("u", "a@b.c", wallet_id="w")
EMBEDDING = Price("*", version=2, in_per_mtok=1_000_000, out_per_mtok=2_000_000, embedding_per_mtok=3_000_000)


def actor(*, models: tuple[str, ...] = (), limits: Limits | None = None) -> Actor:
    key = KeyFacts("k", "apk_x", models=models, limits=limits or Limits())
    return Actor("user", USER, key, flow="u", limits_id="k" if limits else "")


class Scene:
    """The demo engine behind a router, one user, one wallet."""

    def __init__(
        self, tasks: Tasks, folder: Path, *, prices: list[Price] | None = None, **options: Any
    ) -> None:
        self.bench = Bench(tasks, folder, **options)
        clock, metrics = self.bench.clock, Metrics()
        self.router = Router(EngineSettings(), clock=clock, metrics=metrics)
        pool = Pool("demo", strategy="round_robin")
        self.backend = DemoBackend("m", (), clock=clock, metrics=metrics)
        pool.backends = [self.backend]
        self.router.set_pools([pool])
        self.book = PriceBook([PRICE] if prices is None else prices)
        limits = RateLimits(clock=clock, defaults=Limits())
        self.spending = Spending(self.bench.metering, lambda: self.book, limits, clock=clock)
        self.receipt = Receipt("r")

    async def ask(
        self,
        body: dict[str, Any],
        *,
        stream: bool = False,
        caller: Actor | None = None,
        operation: Operation = Operation.CHAT,
    ) -> EngineReply:
        billing = self.spending.billing_of(caller or actor(), peer="1.2.3.4")
        self.receipt = Receipt("r")
        raw = jsons.dumps(body)
        request = EngineRequest(
            operation, body, raw, "m", stream, self.receipt, RequestOptions(billing=billing)
        )
        return await self.router.answer(request)

    def check(self) -> None:
        """Nothing is held, and every attempt has one settlement."""
        assert self.bench.allowance.held_musd == 0
        numbers = [one.number for one in self.bench.settlements]
        assert len(set(numbers)) == len(numbers)
        self.bench.settle()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Callable[..., Scene]]:
    async with Tasks() as tasks:
        yield lambda **options: Scene(tasks, tmp_path / "j", **options)


def chat(text: str = "one two three", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def test_a_whole_chat_costs_what_the_engine_counted(scene: Callable[..., Scene]) -> None:
    it = scene()
    reply = await it.ask(chat())
    usage = json.loads(reply.body or b"")["usage"]
    cost = usage["prompt_tokens"] + 2 * usage["completion_tokens"]
    (settlement,) = it.bench.settlements
    assert (settlement.end.source, settlement.end.charged_musd) == ("engine", cost)
    assert (settlement.note.user_id, settlement.note.key_id, settlement.note.ip) == ("u", "k", "1.2.3.4")
    assert it.receipt.billing == {"cost": cost / 1e6, "source": "engine", "price_version": 4}
    it.check()
    assert it.bench.bank.wallets["w"].used_musd == cost


@pytest.mark.parametrize("is_parsed", [False, True])
@pytest.mark.parametrize(
    ("more", "held", "sent"),
    [
        ({}, 1024, {"max_tokens": 1024}),
        ({"n": 3}, 3072, {"n": 3, "max_tokens": 1024}),
        ({"max_tokens": 5}, 5, {"max_tokens": 5}),
        ({"max_tokens": 5, "n": 2}, 10, {"max_tokens": 5, "n": 2}),
        ({"max_tokens": -1}, 1024, {"max_tokens": 1024}),
        ({"max_tokens": None, "max_completion_tokens": 0}, 1024, {"max_tokens": 1024}),
        ({"max_completion_tokens": 9}, 9, {"max_completion_tokens": 9}),
        ({"max_tokens": 5000}, 5000, {"max_tokens": 5000}),
        ({"n_predict": -1}, 1024, {"max_tokens": 1024}),
        ({"n_predict": 7}, 7, {"max_tokens": 7}),
        ({"max_tokens": 5, "n_predict": 100_000}, 5, {"max_tokens": 5}),
    ],
)
async def test_a_whole_response_is_limited_to_what_is_held(
    scene: Callable[..., Scene], more: dict[str, Any], held: int, sent: dict[str, Any], is_parsed: bool
) -> None:
    it = scene(total_musd=20_000)
    billing = it.spending.billing_of(actor(), peer="1.2.3.4")
    assert billing is not None
    body = chat(**more)
    request = EngineRequest(
        Operation.CHAT,
        body if is_parsed else None,
        jsons.dumps(body),
        "m",
        False,
        Receipt("r"),
        public_model="m",
        choices=body.get("n", 1),
    )
    prompt = estimate_request(request)
    running = await billing.begin(request)
    assert it.bench.allowance.held_musd == prompt + 2 * held
    assert json.loads(request.raw or b"") == request.body == chat(**sent)
    running.close()
    assert it.bench.allowance.held_musd == 0


async def test_a_stream_and_an_embedding_are_sent_as_they_are(scene: Callable[..., Scene]) -> None:
    it = scene(total_musd=20_000)
    billing = it.spending.billing_of(actor(), peer="1.2.3.4")
    assert billing is not None
    for operation, is_stream in ((Operation.CHAT, True), (Operation.EMBEDDING, False)):
        raw = jsons.dumps(chat())
        request = EngineRequest(operation, None, raw, "m", is_stream, Receipt("r"), public_model="m")
        (await billing.begin(request)).close()
        assert request.raw == raw


async def test_embeddings_have_a_price_of_their_own(scene: Callable[..., Scene]) -> None:
    it = scene(prices=[EMBEDDING])
    reply = await it.ask({"model": "m", "input": ["a b c"]}, operation=Operation.EMBEDDING)
    usage = json.loads(reply.body or b"")["usage"]
    (settlement,) = it.bench.settlements
    assert settlement.end.charged_musd == 3 * usage["prompt_tokens"]
    it.check()


async def test_a_stream_costs_the_same_as_the_whole(scene: Callable[..., Scene]) -> None:
    it = scene()
    await it.ask(chat())
    reply = await it.ask(chat(), stream=True)
    assert reply.events is not None
    pieces = [piece async for piece in reply.events]
    await reply.events.aclose()
    assert pieces[-1].endswith(b"data: [DONE]\n\n")
    whole, streamed = it.bench.settlements
    assert (streamed.end.source, streamed.end.read) == (whole.end.source, whole.end.read)
    assert streamed.end.charged_musd == whole.end.charged_musd
    it.check()


@pytest.mark.parametrize("taken", range(8))
async def test_who_leaves_pays_for_what_came(scene: Callable[..., Scene], taken: int) -> None:
    it = scene()
    reply = await it.ask(chat("a long text " * 20), stream=True)
    assert reply.events is not None
    got = b""
    for _ in range(taken):
        got += await anext(reply.events, b"")
    await reply.events.aclose()
    (settlement,) = it.bench.settlements
    assert (settlement.end.charged_musd > 0) == (taken > 0)
    it.check()


async def test_a_stream_ends_where_the_credits_end(scene: Callable[..., Scene]) -> None:
    it = scene(total_musd=900, slice_tokens=8)
    reply = await it.ask(chat("word " * 400, max_tokens=5000), stream=True)
    assert reply.events is not None
    pieces = []
    async for piece in reply.events:
        pieces.append(piece)
        await asyncio.sleep(0)
    last = json.loads(b"".join(pieces).split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["appliance"] == {"stop_reason": "credits_exhausted"}
    assert it.receipt.stop_reason == "credits_exhausted"
    it.check()
    assert it.bench.bank.wallets["w"].used_musd <= 900


async def test_who_has_too_little_is_refused_and_nothing_is_held(scene: Callable[..., Scene]) -> None:
    it = scene(total_musd=3)
    with pytest.raises(PaymentRequired) as caught:
        await it.ask(chat())
    assert caught.value.code == "insufficient_credits"
    assert (it.backend.in_flight, it.bench.settlements) == (0, [])
    it.check()


async def test_a_model_without_a_price_is_refused(scene: Callable[..., Scene]) -> None:
    it = scene(prices=[])
    with pytest.raises(PaymentRequired, match="no price"):
        await it.ask(chat())
    it.check()


async def test_a_key_may_use_its_own_models_only(scene: Callable[..., Scene]) -> None:
    it = scene()
    with pytest.raises(Forbidden) as caught:
        await it.ask(chat(), caller=actor(models=("other", "mx*")))
    assert caught.value.code == "model_not_allowed"
    await it.ask(chat(), caller=actor(models=("m*",)))
    it.check()


async def test_rates_are_counted_shown_and_refused(scene: Callable[..., Scene]) -> None:
    it = scene()
    caller = actor(limits=Limits(rpm=2, concurrency=1))
    await it.ask(chat(), caller=caller)
    assert "X-RateLimit-Remaining: 1\r\n" in it.receipt.header_lines
    running = await it.ask(chat(), stream=True, caller=caller)
    with pytest.raises(RateLimited):
        await it.ask(chat(), caller=caller)
    assert running.events is not None
    await running.events.aclose()
    with pytest.raises(RateLimited, match="2 requests per minute"):
        await it.ask(chat(), caller=caller)
    it.bench.clock.advance(180)
    await it.ask(chat(), caller=caller)
    it.check()


async def test_an_engine_that_refuses_costs_nothing(scene: Callable[..., Scene]) -> None:
    it = scene()
    with pytest.raises(Unavailable):
        await it.ask(chat("demo: error 503"))
    assert [one.end.charged_musd for one in it.bench.settlements] == [0]
    it.check()


@pytest.mark.parametrize(
    ("price", "is_counted_elsewhere", "is_refused"),
    [
        (Price("m", per_request_musd=5), True, False),
        (Price("m", per_request_musd=5, out_per_mtok=1), False, False),
        (Price("m", per_request_musd=5, out_per_mtok=1), True, True),
        (Price("m", per_request_musd=5, embedding_per_mtok=1), True, True),
        (Price("m", in_per_mtok=1), False, True),
        (Price("m"), True, False),
    ],
)
async def test_who_pays_by_the_token_is_sent_where_they_are_counted(
    scene: Callable[..., Scene], price: Price, is_counted_elsewhere: bool, is_refused: bool
) -> None:
    billing = scene(prices=[price]).spending.billing_of(actor(), peer="1.2.3.4")
    assert billing is not None
    begun = billing.begin_flat("m", Receipt("r"), is_counted_elsewhere=is_counted_elsewhere)
    if not is_refused:
        (await begun).close()
        return
    with pytest.raises(PaymentRequired) as refused:
        await begun
    assert refused.value.code == "price_unknown"


@pytest.mark.parametrize("fault", ["journal", "settle"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_in_the_accounts_reaches_no_client(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, fault: str, stream: bool
) -> None:
    def boom(*_: Any) -> None:
        raise OSError("a fault of ours")

    it = scene()
    if fault == "journal":
        monkeypatch.setattr(it.bench.journal, "end", boom)
    else:
        monkeypatch.setattr(it.bench.metering, "settle", boom)
    reply = await it.ask(chat(), stream=stream)
    if reply.events is not None:
        assert b"".join([piece async for piece in reply.events]).endswith(b"data: [DONE]\n\n")
        await reply.events.aclose()
    else:
        assert b"choices" in (reply.body or b"")
    assert (it.bench.allowance.held_musd, it.backend.in_flight) == (0, 0)


async def test_callers_without_an_account_are_not_billed(scene: Callable[..., Scene]) -> None:
    spending = scene().spending
    assert spending.billing_of(ANYBODY, peer="") is None
    assert spending.billing_of(Actor("operator"), peer="") is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 0),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_tokens": 5, "n": 3}, 15),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": None}, 0),
        ({"max_tokens": "5"}, 0),
    ],
)
def test_the_most_tokens_are_those_of_all_choices(body: dict[str, Any], tokens: int) -> None:
    for raw in (None, jsons.dumps(body)):
        request = EngineRequest(Operation.CHAT, None if raw else body, raw, "m", True, Receipt("r"))
        assert read_max_tokens(request) == tokens
    plain = EngineRequest(Operation.CHAT, None, jsons.dumps(body), "m", True, Receipt("r"), choices=1)
    plain.choices = body["n"] if isinstance(body.get("n"), int) and body["n"] > 0 else 1
    assert read_max_tokens(plain) == tokens


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, 10_000, 10_100),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:" + "A" * 90_000}}],
                    }
                ]
            },
            1000,
            1010,
        ),
        ({"prompt": [[5] * 5000, [6] * 10]}, 5010, 5010),
        ({"input": "y" * 9000}, 3000, 3000),
    ],
)
def test_a_large_prompt_is_estimated_by_its_texts(body: dict[str, Any], least: int, most: int) -> None:
    request = EngineRequest(Operation.CHAT, body, jsons.dumps(body), "m", True, Receipt("r"))
    assert least <= estimate_request(request) <= most


def test_a_large_chat_without_pictures_is_estimated_unread() -> None:
    raw = jsons.dumps({"messages": [{"role": "user", "content": "x" * 30_000}]})
    request = EngineRequest(Operation.CHAT, None, raw, "m", True, Receipt("r"), choices=1)
    assert estimate_request(request) == -(-len(raw) // 3)
    assert request.parsed is None


class KnownCaps:
    """Caps of keys that have spent nothing yet."""

    def find(self, key_id: str, cap_musd: int) -> KeyCap:
        assert key_id == "k"
        return KeyCap(cap_musd)

    async def read(self, key_id: str, cap_musd: int) -> KeyCap:
        return self.find(key_id, cap_musd)


async def test_a_key_is_held_to_its_cap_of_a_month(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.bench.metering.caps = KnownCaps()  # type: ignore[assignment]
    with pytest.raises(PaymentRequired, match=r"This API key may spend 0\.000005 dollars a month") as refusal:
        await it.ask(chat(max_tokens=4), caller=actor(limits=Limits(monthly_cap_musd=5)))
    assert refusal.value.code == "key_cap_exceeded"
    assert await it.ask(chat(max_tokens=4), caller=actor(limits=Limits(monthly_cap_musd=5000)))
    it.check()
