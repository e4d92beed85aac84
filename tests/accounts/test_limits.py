"""Rate limits: windows, the tighter limit, tokens, places, headers; together by shared counters, and alone."""

import asyncio
import random
from collections.abc import Sequence
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.actor import ANYBODY, Actor, KeyFacts, Limits, UserFacts
from appliance.accounts.limits import UNLIMITED, RateLimited, RateLimits, read_span, render_span
from appliance.accounts.windows import AttemptLimit, WindowCounter, subject_of_address
from appliance.base.clock import FakeClock

START_S = 1_800_000_000.0  # a whole minute
NO_KEY = Limits()


class Together:
    """Counters that replicas share, in memory; they can fail."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.is_down = False
        self.calls = 0

    async def add(self, items: Sequence[tuple[str, int, int]]) -> list[int]:
        await asyncio.sleep(0)
        self.calls += 1
        if self.is_down:
            raise ConnectionError("refused")
        for name, amount, _ in items:
            self.counts[name] = self.counts.get(name, 0) + amount
        return [self.counts[name] for name, _, _ in items]


def actor_of(user: Limits = NO_KEY, key: Limits = NO_KEY) -> Actor:
    return Actor(
        "user", UserFacts("u1", "a@example.org", limits=user), KeyFacts("k1", "p", limits=key), "u1", "k1"
    )


def limits_at(clock: FakeClock, **more: object) -> RateLimits:
    return RateLimits(clock=clock, defaults=more.pop("defaults", Limits()), **more)


def admitted(limits: RateLimits, actor: Actor, tries: int, *, tokens: int = 0) -> int:
    count = 0
    for _ in range(tries):
        try:
            admission = limits.begin(actor, tokens=tokens)
        except RateLimited:
            continue
        assert admission is not None
        count += 1
    return count


async def test_hundred_requests_a_minute_and_not_one_more() -> None:
    clock = FakeClock(START_S)
    limits, actor = limits_at(clock, defaults=Limits(rpm=100)), actor_of()
    assert admitted(limits, actor, 150) == 100
    with pytest.raises(
        RateLimited, match=r"Rate limit exceeded: 100 requests per minute for this user\. Try again in 61 s\."
    ) as refused:
        limits.begin(actor)
    assert refused.value.retry_after_s == pytest.approx(60.6)
    assert refused.value.details["short"] == "Rate limit exceeded"
    assert ("X-RateLimit-Remaining", "0") in refused.value.headers
    clock.advance(60.6)
    assert admitted(limits, actor, 5) == 1


async def test_last_window_counts_by_the_share_still_in_sight() -> None:
    clock = FakeClock(START_S)
    limits, actor = limits_at(clock, defaults=Limits(rpm=100)), actor_of()
    clock.advance(59)
    assert admitted(limits, actor, 100) == 100
    clock.advance(31)  # half of the next minute is over
    assert admitted(limits, actor, 100) == 50
    clock.advance(120)
    assert admitted(limits, actor, 200) == 100


@pytest.mark.parametrize(
    ("user", "key", "wanted"),
    [
        (Limits(rpm=10), Limits(rpm=3), 3),
        (Limits(rpm=3), Limits(rpm=10), 3),
        (Limits(rpd=4), Limits(), 4),
        (Limits(rpm=100), Limits(rpd=2), 2),
        (Limits(), Limits(tpm=100), 3),
        (Limits(tpd=60), Limits(tpm=1000), 2),
        (Limits(concurrency=2), Limits(), 2),
        (Limits(concurrency=5), Limits(concurrency=1), 1),
    ],
)
async def test_tighter_limit_wins(user: Limits, key: Limits, wanted: int) -> None:
    assert admitted(limits_at(FakeClock(START_S)), actor_of(user, key), 20, tokens=30) == wanted


async def test_own_limits_of_a_user_replace_the_defaults() -> None:
    limits = limits_at(FakeClock(START_S), defaults=Limits(rpm=5, concurrency=1000))
    assert admitted(limits, actor_of(Limits(rpm=8)), 20) == 8


async def test_changed_limit_holds_at_once_and_keeps_the_count() -> None:
    limits = limits_at(FakeClock(START_S))
    assert admitted(limits, actor_of(Limits(rpm=5)), 20) == 5
    assert admitted(limits, actor_of(Limits(rpm=8)), 20) == 3
    assert admitted(limits, actor_of(Limits(rpm=2)), 20) == 0


async def test_two_keys_share_their_user_s_limit() -> None:
    limits = limits_at(FakeClock(START_S), defaults=Limits(rpm=10))
    user = UserFacts("u1", "a@example.org")
    first = Actor("user", user, KeyFacts("k1", "p"), "u1", "k1")
    second = Actor("user", user, KeyFacts("k2", "p", limits=Limits(rpm=4)), "u1", "k2")
    assert admitted(limits, second, 9) == 4
    assert admitted(limits, first, 20) == 6


async def test_tokens_are_corrected_at_the_end() -> None:
    clock = FakeClock(START_S)
    limits, actor = limits_at(clock), actor_of(Limits(tpm=1000))
    one = limits.begin(actor, tokens=900)
    assert one is not None
    with pytest.raises(RateLimited, match="1000 tokens per minute"):
        limits.begin(actor, tokens=200)
    one.end(tokens=100)
    one.end(tokens=100)
    two = limits.begin(actor, tokens=900)
    assert two is not None
    assert dict(two.headers())["x-ratelimit-remaining-tokens"] == "0"
    clock.advance(60)
    two.end(tokens=100)  # in the window before
    clock.advance(30)
    assert admitted(limits, actor, 1, tokens=900) == 1


async def test_request_larger_than_the_limit_is_refused_for_good() -> None:
    with pytest.raises(RateLimited, match="needs about 2000; send a shorter one") as refused:
        limits_at(FakeClock(START_S)).begin(actor_of(Limits(tpm=1000)), tokens=2000)
    assert refused.value.retry_after_s is None


async def test_place_is_given_back_once() -> None:
    limits, actor = limits_at(FakeClock(START_S)), actor_of(Limits(concurrency=1))
    one = limits.begin(actor)
    assert one is not None
    with pytest.raises(RateLimited, match="1 requests at the same time"):
        limits.begin(actor)
    one.end()
    one.end()
    assert admitted(limits, actor, 3) == 1


async def test_callers_without_an_account_have_no_limits() -> None:
    limits = limits_at(FakeClock(START_S), defaults=Limits(rpm=1))
    assert limits.begin(ANYBODY) is UNLIMITED
    assert UNLIMITED.headers() == []
    UNLIMITED.end()


async def test_headers_are_the_original_s_and_openai_s() -> None:
    clock = FakeClock(START_S + 12)
    admission = limits_at(clock).begin(actor_of(Limits(rpm=100, tpm=5000), Limits(rpm=20)), tokens=300)
    assert admission is not None
    assert admission.headers() == [
        ("X-RateLimit-Limit", "20"),
        ("X-RateLimit-Remaining", "19"),
        ("X-RateLimit-Reset", "1800000060"),
        ("x-ratelimit-limit-requests", "20"),
        ("x-ratelimit-remaining-requests", "19"),
        ("x-ratelimit-reset-requests", "48s"),
        ("x-ratelimit-limit-tokens", "5000"),
        ("x-ratelimit-remaining-tokens", "4700"),
        ("x-ratelimit-reset-tokens", "48s"),
    ]


async def test_headers_follow_the_time_and_what_is_left() -> None:
    clock, actor = FakeClock(START_S), actor_of(Limits(rpm=100))
    limits = limits_at(clock)
    seen = []
    for wait_s in (0, 0.5, 0.5, 57, 1.25, 0.5, 10):
        clock.advance(wait_s)
        admission = limits.begin(actor)
        assert admission is not None
        headers = dict(admission.headers())
        seen.append((headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-reset-requests"]))
    assert seen[:6] == [
        ("99", "1m0s"),
        ("98", "1m0s"),
        ("97", "59s"),
        ("96", "2s"),
        ("95", "750ms"),
        ("94", "250ms"),
    ]
    assert seen[6][1] == "51s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.85, "850ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (7384, "2h3m4s")],
)
def test_spans_are_written_as_openai_s(seconds: float, text: str) -> None:
    assert render_span(seconds) == text


# ---- several replicas


async def test_without_redis_each_replica_has_its_part() -> None:
    clock, actor = FakeClock(START_S), actor_of()
    both = [limits_at(clock, defaults=Limits(rpm=90), replicas=lambda: 3) for _ in range(3)]
    assert [admitted(one, actor, 60) for one in both] == [30, 30, 30]
    assert both[0].is_local


async def run_replicas(
    clock: FakeClock, shared: Together, *, limit: int, replicas: int, tries: int, seed: int, down_at: int = -1
) -> int:
    """Send requests to random replicas, which tell each other at random times; return how many were admitted."""
    chance = random.Random(seed)
    actor = actor_of()
    all_of_them = [
        limits_at(clock, defaults=Limits(rpm=limit), shared=shared, replicas=lambda: replicas)
        for _ in range(replicas)
    ]
    count = 0
    for number in range(tries):
        shared.is_down = number == down_at
        one = chance.choice(all_of_them)
        try:
            await one.begin_later(actor)
            count += 1
        except RateLimited:
            pass
        if chance.random() < 0.1:
            await chance.choice(all_of_them).sync()
    return count


@given(st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_replicas_admit_the_limit_and_a_step_each_at_most(limit: int, replicas: int, seed: int) -> None:
    count = asyncio.run(
        run_replicas(
            FakeClock(START_S), Together(), limit=limit, replicas=replicas, tries=limit * 2 + 20, seed=seed
        )
    )
    step = max(1, limit // 20)
    assert limit <= count <= limit + replicas * step


async def test_burst_at_one_of_three_replicas_gets_the_whole_limit() -> None:
    clock, shared, actor = FakeClock(START_S), Together(), actor_of()
    one = limits_at(clock, defaults=Limits(rpm=100), shared=shared, replicas=lambda: 3)
    results = await asyncio.gather(*(one.begin_later(actor) for _ in range(130)), return_exceptions=True)
    assert sum(not isinstance(result, RateLimited) for result in results) == 100
    assert shared.counts == {"ratelimit:u1:30000000": 100, "ratelimit:u1:29999999": 0}


async def test_while_redis_is_down_each_replica_has_its_part() -> None:
    clock, shared, actor = FakeClock(START_S), Together(), actor_of()
    both = [limits_at(clock, defaults=Limits(rpm=100), shared=shared, replicas=lambda: 2) for _ in range(2)]
    shared.is_down = True
    counts = []
    for one in both:
        count = 0
        for _ in range(80):
            try:
                await one.begin_later(actor)
                count += 1
            except RateLimited:
                pass
        counts.append(count)
    assert counts == [50, 50]
    assert both[0].is_local
    assert both[0].failures_total == 1
    shared.is_down = False
    clock.advance(2)
    for one in both:
        await one.sync()
    assert not both[0].is_local
    assert shared.counts["ratelimit:u1:30000000"] == 100
    more = 0
    for _ in range(20):
        try:
            await both[0].begin_later(actor)
            more += 1
        except RateLimited:
            pass
    assert more <= 5  # a step of which the other one had not told


async def test_redis_that_lost_its_data_does_not_admit_all_again() -> None:
    clock, shared, actor = FakeClock(START_S), Together(), actor_of()
    one = limits_at(clock, defaults=Limits(rpm=40), shared=shared)
    for _ in range(30):
        await one.begin_later(actor)
    await one.sync()
    shared.counts.clear()
    more = 0
    for _ in range(40):
        try:
            await one.begin_later(actor)
            more += 1
        except RateLimited:
            pass
    assert more == 10


async def test_background_task_tells_the_others_soon() -> None:
    shared, actor = Together(), actor_of()
    one = limits_at(FakeClock(START_S), defaults=Limits(rpm=1000), shared=shared)
    task = asyncio.create_task(one.run())
    await one.begin_later(actor)
    async with asyncio.timeout(5):
        while shared.counts.get("ratelimit:u1:30000000") != 1:
            await asyncio.sleep(0.01)
    calls = shared.calls
    await asyncio.sleep(0.6)
    assert shared.calls == calls  # nothing new: nothing is told
    task.cancel()


async def test_idle_callers_are_forgotten() -> None:
    clock = FakeClock(START_S)
    limits = limits_at(clock)
    for number in range(100):
        user = UserFacts(f"u{number}", "a@example.org", limits=Limits(rpm=5, rpd=10, concurrency=3))
        limits.begin(Actor("user", user, None, user.id, user.id)).end()
    clock.advance(600)
    limits.forget_idle()
    assert not limits._groups
    assert len(limits._counters) == 100  # those of the day
    clock.advance(200_000)
    limits.forget_idle()
    assert not limits._counters
    assert not limits._running


# ---- windows


@pytest.mark.parametrize(
    ("previous", "current", "passed_s", "amount", "wanted_s"),
    [
        (0, 100, 0, 1, 60.6),
        (0, 100, 30, 1, 30.6),
        (100, 0, 0, 1, 0.6),
        (100, 50, 0, 25, 45),
        (0, 0, 0, 100, 0),
        (0, 10, 0, 100, 120),
    ],
)
def test_time_until_more_fits(
    previous: int, current: int, passed_s: float, amount: int, wanted_s: float
) -> None:
    counter = WindowCounter("x", 100, 60)
    counter.advance(START_S - 60)
    counter.own = previous
    counter.advance(START_S)
    counter.own = current
    now_s = START_S + passed_s
    wait_s = counter.wait_s(amount, now_s, limit=100, is_shared=False)
    assert wait_s == pytest.approx(wanted_s)
    counter.advance(now_s + wait_s)
    assert counter.used(now_s + wait_s, is_shared=False) + amount <= 100 + 1e-6


def test_clock_that_goes_back_changes_nothing() -> None:
    counter = WindowCounter("x", 10, 60)
    counter.advance(START_S)
    counter.add(7)
    counter.advance(START_S - 600)
    assert counter.used(START_S - 600, is_shared=False) == 7


def test_attempts_of_one_subject_are_limited_and_memory_is_bounded() -> None:
    limit = AttemptLimit(5, max_subjects=100)
    assert [limit.take("a", START_S) for _ in range(5)] == [0.0] * 5
    assert limit.take("a", START_S) > 1
    assert limit.take("b", START_S) == 0
    assert limit.take("a", START_S + 75) == 0
    for number in range(1000):
        limit.take(f"s{number}", START_S)
    assert len(limit._counters) == 100


@pytest.mark.parametrize(
    ("peer", "subject"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_addresses_are_counted_by_network(peer: str, subject: str) -> None:
    assert subject_of_address(peer) == subject


@pytest.mark.parametrize("wait_s", [0.0, 12.0, 48.5])
async def test_a_refusal_names_no_reset_before_its_retry_after(wait_s: float) -> None:
    clock, actor = FakeClock(START_S), actor_of(Limits(rpm=4))
    limits = limits_at(clock)
    clock.advance(wait_s)
    for _ in range(4):
        limits.begin(actor)
    with pytest.raises(RateLimited) as refusal:
        limits.begin(actor)
    headers, retry_after_s = dict(refusal.value.headers), refusal.value.retry_after_s
    assert retry_after_s is not None
    assert retry_after_s > 60 - wait_s
    assert read_span(headers["x-ratelimit-reset-requests"]) >= retry_after_s
    assert int(headers["X-RateLimit-Reset"]) >= START_S + wait_s + retry_after_s
    assert f"Try again in {ceil(retry_after_s)} s." in refusal.value.message


@pytest.mark.parametrize("seconds", [0.25, 1, 59, 60, 61, 3600, 86_399])
def test_a_span_is_read_as_it_was_rendered(seconds: float) -> None:
    assert read_span(render_span(seconds)) == seconds
