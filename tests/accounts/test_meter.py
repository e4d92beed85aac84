"""A request is charged once, for what was counted, and never more than was held for it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.accounts.journal import Journal, JournalFull
from appliance.accounts.meter import Meter, MeterOrder, estimate_prompt
from appliance.accounts.prices import FREE, Price, TokenUsage
from appliance.accounts.settlement import AttemptEnd, BillingRules, Ending
from appliance.base.errors import Forbidden, PaymentRequired
from appliance.base.tasks import Tasks
from tests.accounts.metering import PRICE, Bench, order

SUPPLY = Price("s", in_per_mtok=500_000, out_per_mtok=1_000_000)
FRAME = 200


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Callable[..., Bench]]:
    async with Tasks() as tasks:
        yield lambda name="j", **options: Bench(tasks, tmp_path / name, **options)


def stream(meter: Meter, tokens: int) -> int:
    """Let pieces of a token each come; return how many were taken before the meter said stop."""
    for number in range(tokens):
        if not meter.took(1, FRAME + 4):
            return number + 1
    return tokens


async def test_a_stream_is_held_in_slices_and_charged_by_the_engines_figures(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    assert meter.held_musd == 10 + 2 * 256
    meter.attempt("served", "backend")
    assert stream(meter, 192) == 192
    assert meter.held_musd == 10 + 2 * 256
    stream(meter, 1)
    assert meter.held_musd == 10 + 2 * 512  # 64 tokens before it is used up
    settlement = meter.end(Ending.COMPLETE, TokenUsage(12, 2, 193))
    assert settlement is not None
    assert settlement.end == AttemptEnd("engine", 12, 2, 193, 10 + 1 + 386, 397, 0)
    assert (settlement.note.model, settlement.note.served_model, settlement.note.backend) == (
        "m",
        "served",
        "backend",
    )
    assert (settlement.note.price_version, settlement.note.wallet_id, settlement.note.key_id) == (4, "w", "k")
    assert meter.end(Ending.COMPLETE, TokenUsage(9, 9, 9)) is None
    meter.close()
    meter.close()
    assert (one.allowance.held_musd, one.allowance.spent_musd) == (0, 397)
    assert len(one.settlements) == 1
    one.settle()
    assert one.bank.wallets["w"].used_musd == 397


@pytest.mark.parametrize("ending", [Ending.CLIENT_LEFT, Ending.STOPPED, Ending.BROKEN])
@pytest.mark.parametrize("pieces", [0, 1, 2, 63, 64, 65, 300])
async def test_an_early_end_pays_for_what_was_counted(
    bench: Callable[..., Bench], ending: Ending, pieces: int
) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    assert stream(meter, pieces) == pieces
    settlement = meter.end(ending)
    assert settlement is not None
    assert settlement.end.charged_musd == (10 + 2 * pieces if pieces else 0)
    assert settlement.end.source == ("counted" if pieces else "none")
    meter.close()
    one.settle()
    assert one.allowance.held_musd == 0


@pytest.mark.parametrize(
    ("pieces", "counted"),
    [
        ([(1, FRAME)] * 5, 5),
        ([(1, FRAME)] + [(1, FRAME + 60)] * 4, 40),  # long pieces: by their bytes
        ([(1, 5000)] + [(1, 5000)] * 2, 2340),  # of a first event no more than a frame is taken off
        ([(10, 10 * FRAME)] * 3, 30),
        ([(1, FRAME), (0, 600)], 100),
        ([(0, 50), (1, FRAME)], 1),
    ],
)
async def test_tokens_are_counted_by_events_or_bytes(
    bench: Callable[..., Bench], pieces: list[tuple[int, int]], counted: int
) -> None:
    meter = await bench().metering.begin(order())
    meter.attempt("s", "b")
    for events, n_bytes in pieces:
        assert meter.took(events, n_bytes)
    assert abs(meter.counted_tokens - counted) <= counted // 20


async def test_a_failed_attempt_is_free_and_the_next_one_has_its_own_row(bench: Callable[..., Bench]) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    meter.attempt("s1", "b1", supply=SUPPLY)
    assert meter.end(Ending.FAILED, TokenUsage(10, 0, 20)) is not None
    assert meter.held_musd == 522
    meter.attempt("s2", "b2")
    stream(meter, 5)
    meter.attempt("s3", "b3")  # one that runs counts as failed
    meter.end(Ending.COMPLETE, TokenUsage(10, 0, 5))
    meter.close()
    ends = [
        (one.note.backend, one.end.source, one.end.charged_musd, one.end.supply_musd)
        for one in one.settlements
    ]
    assert ends == [("b1", "none", 0, 25), ("b2", "none", 0, 0), ("b3", "engine", 20, 0)]
    assert len({one.note.attempt_id for one in one.settlements}) == 3
    one.settle()


async def test_an_attempt_after_one_that_was_charged_is_held_for_anew(bench: Callable[..., Bench]) -> None:
    one = bench(total_musd=560)
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    stream(meter, 10)
    meter.end(Ending.BROKEN)
    assert meter.held_musd == 0
    meter.attempt("s", "b2")
    assert 10 < meter.held_musd <= 522  # as much as there is
    stream(meter, 10)
    meter.end(Ending.BROKEN)
    assert one.allowance.hold(one.allowance.free_musd)
    with pytest.raises(PaymentRequired):
        meter.attempt("s", "b3")
    meter.close()
    assert one.allowance.spent_musd == 60
    one.settle()


async def test_a_request_that_is_never_sent_gives_all_back(bench: Callable[..., Bench]) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    meter.close()
    assert (one.settlements, one.allowance.held_musd) == ([], 0)


async def test_closing_ends_an_attempt_that_runs(bench: Callable[..., Bench]) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    stream(meter, 3)
    meter.close()
    assert [(s.end.source, s.end.charged_musd) for s in one.settlements] == [("counted", 16)]


async def test_a_charge_above_the_hold_is_the_operators_loss(bench: Callable[..., Bench]) -> None:
    one = bench(total_musd=600)
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    settlement = meter.end(Ending.COMPLETE, TokenUsage(10, 0, 1000))
    assert settlement is not None
    assert settlement.end.cost_musd == 2010
    assert settlement.end.charged_musd == meter._allowance.spent_musd == one.bank.leases["r1", "w"]
    meter.close()
    one.settle()
    assert one.bank.wallets["w"].used_musd <= 600


async def test_a_first_hold_that_is_too_large_is_refused_with_the_figures(
    bench: Callable[..., Bench],
) -> None:
    one = bench(total_musd=500)
    with pytest.raises(PaymentRequired) as refusal:
        await one.metering.begin(order())
    assert refusal.value.code == "insufficient_credits"
    assert refusal.value.message == (
        "The credits do not suffice: 0.000522 dollars are needed to begin, 0.0005 are left. Add credits, or ask for "
        "fewer tokens."
    )
    assert refusal.value.details["error_fields"] == {"credits_remaining": 0.0005, "credits_needed": 0.000522}
    (await one.metering.begin(order(max_tokens=100))).close()


@pytest.mark.parametrize(
    ("reason", "error", "code"),
    [
        ("spending_limit", PaymentRequired, "spending_limit"),
        ("wallet_frozen", Forbidden, "wallet_frozen"),
        ("wallet_unknown", Forbidden, "wallet_unknown"),
    ],
)
async def test_other_reasons_have_texts_of_their_own(
    bench: Callable[..., Bench], reason: str, error: type[Exception], code: str
) -> None:
    one = bench()
    one.allowance.reason = reason
    refusal = one.metering.refusal(one.allowance, 5)
    assert isinstance(refusal, error)
    assert refusal.code == code


@pytest.mark.parametrize(
    ("made", "held"),
    [
        (order(max_tokens=16), 10 + 32),
        (order(max_tokens=1000), 10 + 512),
        (order(is_gradual=False, max_tokens=300), 10 + 600),
        (order(is_gradual=False), 10 + 2048),
        (order(kind="embedding", price=Price("e", embedding_per_mtok=3_000_000)), 30),
        (order(price=Price("p", per_request_musd=9)), 9),
        (order(price=FREE), 0),
    ],
)
async def test_what_is_held_first(bench: Callable[..., Bench], made: MeterOrder, held: int) -> None:
    meter = await bench().metering.begin(made)
    assert meter.held_musd == held
    meter.close()


async def test_no_more_is_held_than_the_client_allows(bench: Callable[..., Bench]) -> None:
    meter = await bench().metering.begin(order(max_tokens=300))
    meter.attempt("s", "b")
    assert stream(meter, 300) == 300
    assert meter.held_musd == 10 + 600
    assert stream(meter, 10) == 10  # the engine gives more all the same
    meter.close()


async def test_a_stream_without_money_is_ended_at_the_last_token(bench: Callable[..., Bench]) -> None:
    one = bench(total_musd=10 + 2 * 300 + 1)
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    taken = 0
    while taken < 2000 and meter.took(1, FRAME):
        taken += 1
        await asyncio.sleep(0)
    assert taken == 300
    assert meter.is_stopped
    settlement = meter.end(Ending.STOPPED)
    assert settlement is not None
    assert (settlement.end.written, settlement.end.charged_musd, settlement.end.cost_musd) == (300, 610, 610)
    meter.close()
    one.settle()
    assert one.bank.wallets["w"].used_musd == 610


async def test_a_burst_ends_at_what_is_held_and_goes_on_after_a_wait(bench: Callable[..., Bench]) -> None:
    one = bench(most_musd=600)
    one.store.delay_s = 0.05
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    stream(meter, 5000)  # all of it before the loop turns
    assert (meter.counted_tokens, one.allowance.is_asking) == (295, True)
    assert await meter.took_later(400, 400 * FRAME)  # more than a lease at a time
    assert (meter.counted_tokens, meter.is_stopped) == (695, False)
    settlement = meter.end(Ending.CLIENT_LEFT)
    assert settlement is not None
    assert settlement.end.charged_musd == settlement.end.cost_musd == 10 + 2 * 695
    meter.close()
    one.check()


@pytest.mark.parametrize("is_away", [False, True])
async def test_more_than_there_is_is_refused_after_the_wait(
    bench: Callable[..., Bench], is_away: bool
) -> None:
    one = bench(total_musd=700, most_musd=600)
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    stream(meter, 5000)
    taken = meter.counted_tokens
    one.bank.is_down = is_away
    assert not await meter.took_later(500, 500 * FRAME)
    assert (meter.counted_tokens, meter.is_stopped, meter.is_store_away) == (taken, True, is_away)
    while meter.took(1, FRAME) or await meter.took_later(1, FRAME):  # what there is can be had one by one
        taken += 1
    settlement = meter.end(Ending.STOPPED)
    assert settlement is not None
    assert settlement.end.charged_musd == settlement.end.cost_musd == 10 + 2 * taken
    assert is_away or taken == 345
    meter.close()
    one.bank.is_down = False
    one.check()


async def test_a_client_that_leaves_while_its_stream_waits_pays_for_what_came(
    bench: Callable[..., Bench],
) -> None:
    one = bench(most_musd=600)
    meter = await one.metering.begin(order(prompt_tokens=1))
    one.store.delay_s = 1
    meter.attempt("s", "b")
    stream(meter, 5000)
    taken = meter.counted_tokens
    waiting = asyncio.ensure_future(meter.took_later(400, 400 * FRAME))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    settlement = meter.end(Ending.CLIENT_LEFT)
    assert settlement is not None
    assert settlement.end.written == taken
    meter.close()
    assert one.allowance.held_musd == 0


async def test_prices_without_a_part_for_responses_are_never_asked_again(bench: Callable[..., Bench]) -> None:
    one = bench()
    for price in (FREE, Price("p", in_per_mtok=1_000_000)):
        meter = await one.metering.begin(order(price=price))
        meter.attempt("s", "b")
        assert stream(meter, 2000) == 2000
        settlement = meter.end(Ending.CLIENT_LEFT)
        assert settlement is not None
        assert settlement.end.written == 2000
        meter.close()


async def test_a_full_journal_refuses_what_costs_and_lets_pass_what_is_free(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    one.journal._max_bytes = -1
    meter = await one.metering.begin(order())
    with pytest.raises(JournalFull):
        meter.attempt("s", "b")
    meter.close()
    assert one.allowance.held_musd == 0
    free = await one.metering.begin(order(price=FREE))
    free.attempt("s", "b")
    assert free.end(Ending.COMPLETE, TokenUsage(1, 0, 1)) is not None


async def test_the_journal_knows_what_a_killed_request_pays(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    one = bench()
    meter = await one.metering.begin(order())
    meter.attempt("s", "b")
    stream(meter, 250)
    ended = await one.metering.begin(order())
    ended.attempt("s", "b")
    ended.end(Ending.COMPLETE, TokenUsage(10, 0, 1))
    os.close(one.journal._lock)
    state = Journal(tmp_path / "j", max_bytes=10**8).state
    charged = [attempt.settlement().end for attempt in state.attempts.values()]
    assert charged == [
        AttemptEnd("journal", 10, 0, 193, 396, 396, 0),
        AttemptEnd("engine", 10, 0, 1, 12, 12, 0),
    ]
    assert state.leases == {"w": one.bank.leases["r1", "w"]}


@pytest.mark.parametrize(
    ("text_bytes", "pictures", "tokens"), [(0, 0, 0), (1, 0, 1), (3, 0, 1), (3000, 1, 2000)]
)
def test_prompts_are_estimated(text_bytes: int, pictures: int, tokens: int) -> None:
    assert estimate_prompt(text_bytes, pictures) == tokens


# ---- I3: many streams, little money


async def run_stream(one: Bench, tokens: int) -> tuple[int, bool]:
    """A stream of `tokens`; return how many the client got, and whether it was cut or refused."""
    try:
        meter = await one.metering.begin(order())
    except PaymentRequired:
        return 0, True
    try:
        meter.attempt("s", "b")
        for number in range(tokens):
            await asyncio.sleep(0)
            if not meter.took(1, FRAME):
                meter.end(Ending.STOPPED)
                return number, True
        meter.end(Ending.COMPLETE, TokenUsage(10, 0, tokens))
        return tokens, False
    finally:
        meter.close()


COST = 10 + 2 * 150


async def test_200_streams_with_money_for_37_never_spend_more(bench: Callable[..., Bench]) -> None:
    one = bench(total_musd=37 * COST, most_musd=2000, slice_tokens=32)
    results = await asyncio.gather(*(run_stream(one, 150) for _ in range(200)))
    charged = sum(settlement.end.charged_musd for settlement in one.settlements)
    one.settle()
    assert charged == one.bank.wallets["w"].used_musd <= 37 * COST
    assert charged >= 37 * COST - 100  # nearly all of it was sold
    assert any(is_cut for _, is_cut in results)
    assert one.allowance.held_musd == 0


async def test_200_streams_with_enough_money_are_neither_cut_nor_refused(bench: Callable[..., Bench]) -> None:
    # the holds of 200 streams at the same time are more than what they cost at the end
    one = bench(total_musd=200 * (COST + 2 * (256 + 64)), most_musd=20_000)
    results = await asyncio.gather(*(run_stream(one, 150) for _ in range(200)))
    assert results == [(150, False)] * 200
    one.settle()
    assert one.bank.wallets["w"].used_musd == 200 * COST


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9000)), max_size=40),
    ending=st.sampled_from(Ending),
    usage=st.none()
    | st.builds(TokenUsage, st.integers(-5, 5000), st.integers(0, 5000), st.integers(0, 5000)),
    total=st.integers(0, 20_000),
    max_tokens=st.sampled_from([0, 1, 50, 400]),
    rules=st.builds(BillingRules, st.booleans(), st.booleans()),
)
def test_no_request_is_charged_more_than_was_held(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, int]],
    ending: Ending,
    usage: TokenUsage | None,
    total: int,
    max_tokens: int,
    rules: BillingRules,
) -> None:
    async def run() -> None:
        async with Tasks() as tasks:
            one = Bench(tasks, tmp_path_factory.mktemp("j"), total_musd=total, most_musd=700, rules=rules)
            try:
                meter = await one.metering.begin(order(max_tokens=max_tokens))
            except PaymentRequired:
                assert total < 10 + 512
                return
            meter.attempt("s", "b", supply=SUPPLY)
            for events, n_bytes in pieces:
                await asyncio.sleep(0)
                if not meter.took(events, n_bytes):
                    break
            settlement = meter.end(ending, usage)
            meter.close()
            assert settlement is not None
            assert 0 <= settlement.end.charged_musd <= min(settlement.end.cost_musd, total)
            assert settlement.end.supply_musd >= 0
            assert one.allowance.held_musd == 0
            one.settle()
            one.journal.close()

    asyncio.run(run())


def test_a_price_is_used_that_was_valid_at_the_begin() -> None:
    assert order().price is PRICE


async def test_what_an_engine_writes_beyond_the_most_is_paid_for_in_slices(
    bench: Callable[..., Bench],
) -> None:
    one = bench()
    meter = await one.metering.begin(order(max_tokens=8))
    meter.attempt("served", "backend")
    noted = one.journal.size_bytes
    for _ in range(600):
        assert meter.took(1, 200)
    assert one.journal.size_bytes - noted < 10 * 36  # a record for each slice, not for each token
    settlement = meter.end(Ending.STOPPED)
    assert settlement is not None
    assert settlement.end.written == 600
    meter.close()


@pytest.mark.parametrize("flat", [Price("f", per_request_musd=500), Price("f", 0, 0, 1_000_000, 0, 0)])
async def test_what_has_begun_is_paid_for_where_the_process_is_killed(
    bench: Callable[..., Bench], tmp_path: Path, flat: Price
) -> None:
    kind = "embedding" if flat.per_request_musd else "inference"
    one = bench()
    meter = await one.metering.begin(order(kind=kind, price=flat, is_gradual=not flat.per_request_musd))
    meter.attempt("served", "backend")
    assert meter.took(1, 1)  # now its head is passed on
    os.close(one.journal._lock)  # as a kill does
    [attempt] = Journal(tmp_path / "j", max_bytes=10**8).state.attempts.values()
    assert attempt.settlement().end.charged_musd == meter.held_musd > 0
