"""Rate limits: requests and tokens per minute and per day, requests at the same time; of users and of keys.

Of a user's limit and a key's the tighter one wins. With Redis all replicas count together: each tells the
others every 250 ms, and before it has counted more than a twentieth of a limit that they do not know of.
So never more is admitted than the limit and, for each replica, that step. Without Redis each replica has
the limit divided by the number of replicas that live, and the same while Redis is down. A Redis that comes
back empty has forgotten what the others counted in the present window; what a replica has admitted itself it
knows.

    admission = limits.begin(actor, tokens=estimate) or await limits.begin_later(actor, tokens=estimate)
    ...
    admission.end(tokens=used)
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from math import ceil, floor
from typing import Final, Protocol

from appliance.accounts.actor import Actor, Limits
from appliance.accounts.windows import WindowCounter
from appliance.base.clock import Clock
from appliance.base.errors import Exhausted
from appliance.base.logs import get_logger

log = get_logger("accounts")

MINUTE_S: Final = 60
DAY_S: Final = 86_400
SYNC_S: Final = 0.25
BACK_OFF_S: Final = 1.0  # after Redis failed
IDLE_S: Final = 300
ROUNDING: Final = 1e-6
NEAR: Final = 0.8  # from here on the others are told at once
WINDOWS: Final = (("rpm", MINUTE_S), ("rpd", DAY_S), ("tpm", MINUTE_S), ("tpd", DAY_S))
WORDS: Final = {
    "rpm": "requests per minute",
    "rpd": "requests per day",
    "tpm": "tokens per minute",
    "tpd": "tokens per day",
}
EXCEEDED: Final = "Rate limit exceeded"
Headers = list[tuple[str, str]]


class SharedCounters(Protocol):
    """Counters that all replicas share."""

    async def add(self, items: Sequence[tuple[str, int, int]]) -> list[int]:
        """Add to counters, in one round trip.

        Args:
            items: (name, amount, seconds after which it may be forgotten); amount 0 reads.

        Returns:
            The counts afterwards.

        Raises:
            Exception: Any, where they cannot be reached.
        """


class RateLimited(Exhausted):
    """A rate limit is reached.

    Attributes:
        headers: The limits' headers for the response.
    """

    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float | None, headers: Headers) -> None:
        super().__init__(message, retry_after_s=retry_after_s, details={"short": EXCEEDED})
        self.headers = headers


class _Running:
    """How many requests of a subject run at this replica, and how many may on all."""

    __slots__ = ("count", "limit", "name")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.count = 0


class _LimitLines:
    """Header lines about a counter; all but what is left of it is rendered once a second.

    Args:
        what: `requests` or `tokens`.
    """

    __slots__ = ("_counter", "_limit", "_parts", "_until_s", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._counter: WindowCounter | None = None
        self._limit = 0
        self._until_s = 0.0
        self._parts: tuple[str, ...] = ()

    def render(self, counter: WindowCounter, left: int, now_s: float) -> str:
        """Return the lines."""
        if counter is not self._counter or now_s >= self._until_s or counter.limit != self._limit:
            self._renew(counter, now_s)
        return str(left).join(self._parts)

    def _renew(self, counter: WindowCounter, now_s: float) -> None:
        left_s = max(0.0, counter.ends_s - now_s)
        self._counter, self._limit = counter, counter.limit
        self._until_s = counter.ends_s - max(ceil(left_s) - 1, 1)
        before, what = "", self._what
        if what == "requests":
            before = f"X-RateLimit-Limit: {counter.limit}\r\nX-RateLimit-Remaining: |"
            before += f"\r\nX-RateLimit-Reset: {counter.ends_s}\r\n"
        self._parts = tuple(
            f"{before}x-ratelimit-limit-{what}: {counter.limit}\r\nx-ratelimit-remaining-{what}: |"
            f"\r\nx-ratelimit-reset-{what}: {render_span(left_s)}\r\n".split("|")
        )


class _Group:
    """The limits of one caller: those of the user and those of the key."""

    __slots__ = ("actor", "request_lines", "requests", "running", "seen_s", "token_lines", "tokens")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.requests: list[WindowCounter] = []
        self.tokens: list[WindowCounter] = []
        self.running: list[_Running] = []
        self.seen_s = 0.0
        self.request_lines = _LimitLines("requests")
        self.token_lines = _LimitLines("tokens")

    def costs(self, tokens: int) -> list[tuple[WindowCounter, int]]:
        """Return what a request adds to each counter."""
        return [*((one, 1) for one in self.requests), *((one, tokens) for one in self.tokens)]


class RateAdmission:
    """A request that was admitted; it ends once."""

    __slots__ = ("_group", "_limits", "_tokens", "_windows")

    def __init__(self, limits: "RateLimits | None", group: _Group | None, tokens: int) -> None:
        self._limits = limits
        self._group = group
        self._tokens = tokens
        self._windows: list[int] | None = None
        if group is not None and group.tokens:
            self._windows = [counter.epoch for counter in group.tokens]

    def end(self, *, tokens: int | None = None) -> None:
        """Give the place back, and correct the tokens. Further calls do nothing.

        Args:
            tokens: What was used; None = as estimated.
        """
        limits, group = self._limits, self._group
        if limits is None or group is None:
            return
        self._limits = None
        for running in group.running:
            running.count -= 1
        if self._windows is not None and tokens is not None and tokens != self._tokens:
            limits.correct(group.tokens, self._windows, tokens - self._tokens)

    def header_lines(self) -> str:
        """Return the limits' headers as lines that end with CR LF; "" = no limits, or it has ended."""
        if self._group is None or self._limits is None:
            return ""
        return self._limits.header_lines_of(self._group)

    def headers(self) -> Headers:
        """Return the same headers as pairs."""
        return _split(self.header_lines())


UNLIMITED: Final = RateAdmission(None, None, 0)


class RateLimits:
    """Admits requests by the limits of their callers.

    Args:
        defaults: The limits of users who have none of their own.
        shared: Counters of all replicas; None = there is no Redis.
        replicas: Returns how many replicas live, this one included.

    Attributes:
        is_local: Whether each replica has its part of the limits at present, as Redis is missing or down.
        failures_total: How often Redis did not answer.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        defaults: Limits,
        shared: SharedCounters | None = None,
        replicas: Callable[[], int] = lambda: 1,
    ) -> None:
        self._clock = clock
        self._now_s = clock.now_s
        self._defaults = defaults
        self._shared = shared
        self._replicas = replicas
        self.is_local = shared is None
        self.failures_total = 0
        self._groups: dict[str, _Group] = {}
        self._counters: dict[str, WindowCounter] = {}
        self._running: dict[str, _Running] = {}
        self._unsent: set[WindowCounter] = set()
        self._wake = asyncio.Event()  # something is to be told
        self._urgent = asyncio.Event()  # at once
        self._lock = asyncio.Lock()
        self._failed_s = float("-inf")

    # ---- admit

    def begin(self, actor: Actor, *, tokens: int = 0) -> RateAdmission | None:
        """Admit a request.

        Args:
            actor: Who calls.
            tokens: How many it will need, by estimate; at least 0.

        Returns:
            The admission; None = the other replicas must be told first: await `begin_later`.

        Raises:
            RateLimited: A limit is reached.
        """
        name = actor.limits_id
        if not name:
            return UNLIMITED
        group = self._groups.get(name)
        if group is None or group.actor is not actor:
            group = self._make_group(actor)
        now_s = self._now_s()
        for counter in group.requests:
            if counter.spare < 1 or now_s >= counter.ends_s:
                return self._decide(group, tokens, now_s)
        for counter in group.tokens:
            if counter.spare < tokens or now_s >= counter.ends_s:
                return self._decide(group, tokens, now_s)
        if group.running:
            self._check_running(group)
        return self._count(group, tokens, now_s)

    def _decide(self, group: _Group, tokens: int, now_s: float) -> RateAdmission | None:
        """Decide where a counter has none to spare.

        1. beyond a limit                                        → refuse
        2. the others know too little of what was counted here   → None: tell them first
        3. otherwise                                             → count, and compute what is to spare anew
        """
        is_shared = not self.is_local
        costs = group.costs(tokens)
        for counter, cost in costs:
            counter.advance(now_s)
            limit = self._limit_here(counter)
            used = counter.used(now_s, is_shared=is_shared) + min(cost, limit)
            if used > limit + ROUNDING or cost > counter.limit:  # 1
                self._refuse(group, counter, cost, now_s)
            if is_shared and counter.pending > 0 and counter.pending + cost > counter.step:  # 2
                return None
        if group.running:
            self._check_running(group)
        admission = self._count(group, tokens, now_s)  # 3
        for counter, _ in costs:
            self._compute_spare(counter)
        return admission

    def _compute_spare(self, counter: WindowCounter) -> None:
        """Compute how much may be counted before the next decision: less than a step, not near a limit."""
        limit = self._limit_here(counter)
        if self.is_local:
            known, pending = counter.own_previous + counter.own, 0
        else:
            known = counter.base_previous + counter.pending_previous + counter.base + counter.pending
            pending = counter.pending
        half = counter.step // 2
        counter.spare = min((half if pending < half else counter.step) - pending, int(limit * NEAR) - known)
        if self._shared is None:
            return
        self._unsent.add(counter)
        self._wake.set()
        if pending >= half or counter.spare <= 0:
            self._urgent.set()

    def _limit_here(self, counter: WindowCounter) -> int:
        """Return what this replica may admit: all, or its part where the replicas do not count together."""
        return max(1, counter.limit // self._replicas()) if self.is_local else counter.limit

    async def begin_later(self, actor: Actor, *, tokens: int = 0) -> RateAdmission:
        """Tell the other replicas, and admit a request. `begin` says when this is needed.

        Raises:
            RateLimited: A limit is reached.
        """
        while (admission := self.begin(actor, tokens=tokens)) is None:
            await self.sync()
        return admission

    def _count(self, group: _Group, tokens: int, now_s: float) -> RateAdmission:
        group.seen_s = now_s
        for counter in group.requests:
            counter.own += 1
            counter.pending += 1
            counter.spare -= 1
        if tokens:
            for counter in group.tokens:
                counter.add(tokens)
        for running in group.running:
            running.count += 1
        return RateAdmission(self, group, tokens)

    def correct(self, counters: list[WindowCounter], windows: list[int], amount: int) -> None:
        """Correct what was counted for tokens, in the windows in which it was."""
        for counter, window in zip(counters, windows, strict=True):
            counter.correct(amount, window)
        if self._shared is not None:
            self._unsent.update(counters)
            self._wake.set()

    def _check_running(self, group: _Group) -> None:
        for running in group.running:
            limit = max(1, running.limit // self._replicas())
            if running.count >= limit:
                raise RateLimited(
                    f"{EXCEEDED}: {running.limit} requests at the same time for this {running.name}. "
                    "Wait until one has ended.",
                    retry_after_s=1,
                    headers=self.headers_of(group),
                )

    def _refuse(self, group: _Group, counter: WindowCounter, cost: int, now_s: float) -> None:
        subject, kind = _subject_and_kind(counter)
        wait_s: float | None = None
        if cost > counter.limit:
            advice = f"This request needs about {cost}; send a shorter one."
        else:
            limit = self._limit_here(counter)
            wait_s = counter.wait_s(min(cost, limit), now_s, limit=limit, is_shared=not self.is_local)
            advice = f"Try again in {max(1, ceil(wait_s))} s."
        raise RateLimited(
            f"{EXCEEDED}: {counter.limit} {WORDS[kind]} for this {subject}. {advice}",
            retry_after_s=wait_s,
            headers=_not_before(self.headers_of(group), kind, wait_s, now_s),
        )

    # ---- the limits of a caller

    def _make_group(self, actor: Actor) -> _Group:
        group = _Group(actor)
        if actor.user is not None:
            self._add_limits(group, "user", actor.user.id, _with_defaults(actor.user.limits, self._defaults))
        if actor.key is not None:
            self._add_limits(group, "key", actor.key.id, actor.key.limits)
        self._groups[actor.limits_id] = group
        return group

    def _add_limits(self, group: _Group, subject: str, subject_id: str, limits: Limits) -> None:
        for kind, length_s in WINDOWS:
            limit = getattr(limits, kind)
            if limit is not None:
                counter = self._counter(_counter_name(subject, subject_id, kind), limit, length_s)
                (group.requests if kind[0] == "r" else group.tokens).append(counter)
        if limits.concurrency is not None:
            name = f"{subject}:{subject_id}"
            running = self._running.setdefault(name, _Running(subject, limits.concurrency))
            running.limit = limits.concurrency
            group.running.append(running)

    def _counter(self, name: str, limit: int, length_s: int) -> WindowCounter:
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = WindowCounter(name, limit, length_s)
        elif counter.limit != limit:
            counter.set_limit(limit)
        return counter

    def forget_idle(self) -> None:
        """Drop what has not been used for some minutes; windows of a day are kept for two."""
        now_s = self._clock.now_s()
        for name, group in list(self._groups.items()):
            if now_s - group.seen_s > IDLE_S and not any(running.count for running in group.running):
                del self._groups[name]
        used = {id(counter) for group in self._groups.values() for counter, _ in group.costs(0)}
        used |= {id(running) for group in self._groups.values() for running in group.running}
        for name, counter in list(self._counters.items()):
            is_over = now_s >= counter.ends_s + counter.length_s
            if is_over and id(counter) not in used and counter not in self._unsent:
                del self._counters[name]
        for name, running in list(self._running.items()):
            if not running.count and id(running) not in used:
                del self._running[name]

    # ---- headers

    def headers_of(self, group: _Group) -> Headers:
        """Return the headers: those of the original, and OpenAI's."""
        return _split(self.header_lines_of(group))

    def header_lines_of(self, group: _Group) -> str:
        """Return the same headers as lines that end with CR LF."""
        now_s = self._now_s()
        lines = ""
        if group.requests:
            lines = group.request_lines.render(*self._tightest(group.requests, now_s), now_s)
        if group.tokens:
            lines += group.token_lines.render(*self._tightest(group.tokens, now_s), now_s)
        return lines

    def _tightest(self, counters: list[WindowCounter], now_s: float) -> tuple[WindowCounter, int]:
        """Return the counter of which the least is left, and how much that is."""
        best, least = counters[0], -1
        is_local = self.is_local
        replicas = self._replicas() if is_local else 1
        for counter in counters:
            if now_s >= counter.ends_s:
                counter.advance(now_s)
            limit = counter.limit if replicas == 1 else max(1, counter.limit // replicas)
            left = floor(limit - counter.used(now_s, is_shared=not is_local))
            if least < 0 or left < least:
                best, least = counter, max(left, 0)
        return best, least

    # ---- all replicas together

    async def run(self) -> None:
        """Tell the other replicas what was counted, for ever. Run it as a background task."""
        while self._shared is not None:
            await self._wake.wait()
            self._wake.clear()
            try:
                async with asyncio.timeout(SYNC_S):
                    await self._urgent.wait()
            except TimeoutError:
                pass
            self._urgent.clear()
            await self.sync()
            if self.is_local and self._unsent:
                await asyncio.sleep(BACK_OFF_S)
                self._wake.set()

    async def sync(self) -> None:
        """Tell the other replicas what was counted, and hear what they counted. It does not raise."""
        if self._shared is None:
            return
        async with self._lock:
            now_s = self._clock.now_s()
            if self.is_local and self._clock.monotonic_s() - self._failed_s < BACK_OFF_S:
                return
            counters, self._unsent = list(self._unsent), set()
            if not counters:
                return
            sent = [_Sent(counter, now_s) for counter in counters]
            items = [item for one in sent for item in one.items]
            try:
                counts = await self._shared.add(items)
            except Exception as error:
                self._unsent.update(counters)
                self._fail(error)
                return
            if self.is_local:
                log.warning("limits_shared", note="Redis answers again: all replicas count together")
                self._forget_spares()
            self.is_local = False
            for one in sent:
                one.take(counts[: len(one.items)])
                counts = counts[len(one.items) :]

    def _fail(self, error: Exception) -> None:
        self._failed_s = self._clock.monotonic_s()
        self.failures_total += 1
        if not self.is_local:
            self.is_local = True
            self._forget_spares()
            log.warning(
                "limits_local",
                error=repr(error),
                note="Redis does not answer: each replica has its part of the limits",
            )

    def _forget_spares(self) -> None:
        for counter in self._counters.values():
            counter.spare = 0


class _Sent:
    """What one counter has told the others: it is known only when they have answered."""

    __slots__ = ("amount", "counter", "epoch", "items", "previous")

    def __init__(self, counter: WindowCounter, now_s: float) -> None:
        counter.advance(now_s)
        self.counter = counter
        self.epoch = counter.epoch
        self.amount = counter.pending
        self.previous = counter.pending_previous
        ttl_s = counter.length_s * 2 + 10
        self.items = [(f"{counter.name}:{self.epoch}", self.amount, ttl_s)]
        if self.previous or not counter.knows_previous:
            self.items.append((f"{counter.name}:{self.epoch - 1}", self.previous, ttl_s))

    def take(self, counts: Sequence[int]) -> None:
        """Take what the others answered; nothing, where the window is over meanwhile."""
        counter = self.counter
        counter.spare = 0
        if counter.epoch == self.epoch:
            counter.pending -= self.amount
            counter.base = max(counts[0], counter.own - counter.pending, 0)  # Redis may have lost its data
            if len(counts) > 1:
                counter.pending_previous -= self.previous
                counter.base_previous = max(counts[1], counter.own_previous - counter.pending_previous, 0)
                counter.knows_previous = True
        elif counter.epoch == self.epoch + 1:
            counter.pending_previous -= self.amount
            counter.base_previous = max(counts[0], 0)


def _with_defaults(limits: Limits, defaults: Limits) -> Limits:
    chosen = {
        name: getattr(defaults, name) if getattr(limits, name) is None else getattr(limits, name)
        for name in (*WORDS, "concurrency")
    }
    return Limits(**chosen)


def _counter_name(subject: str, subject_id: str, kind: str) -> str:
    """Name a counter for all replicas; the first one as the original does, `ratelimit:<user>:<minute>`."""
    if (subject, kind) == ("user", "rpm"):
        return f"ratelimit:{subject_id}"
    return f"ratelimit:{subject}:{subject_id}:{kind}"


def _subject_and_kind(counter: WindowCounter) -> tuple[str, str]:
    parts = counter.name.split(":")
    return (parts[1], parts[-1]) if len(parts) > 2 else ("user", "rpm")


def _split(lines: str) -> Headers:
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines.splitlines())]


def _not_before(headers: Headers, kind: str, wait_s: float | None, now_s: float) -> Headers:
    """Return the limits' headers, with no end of a refused limit before the next request is admitted.

    The windows slide: where one is full, its end alone does not let the next request in.

    Args:
        kind: Of the counter that refused: `rpm` and so on.
        wait_s: Until the next request is admitted; None = it never is.
        now_s: Seconds since 1970.
    """
    if wait_s is None:
        return headers
    wait_s = max(1, ceil(wait_s))
    found = dict(headers)
    reset = found.get("X-RateLimit-Reset", "")
    what = "requests" if kind[0] == "r" else "tokens"
    name, changed = f"x-ratelimit-reset-{what}", {}
    if name in found and read_span(found[name]) < wait_s:
        changed[name] = render_span(wait_s)
    if what == "requests" and reset and int(reset) < now_s + wait_s:
        changed["X-RateLimit-Reset"] = str(ceil(now_s + wait_s))
    return [(one, changed.get(one, value)) for one, value in headers]


def read_span(text: str) -> float:
    """Return the seconds of a span that `render_span` wrote."""
    if text.endswith("ms"):
        return int(text[:-2]) / 1000
    seconds = 0.0
    for number, unit in re.findall(r"(\d+)([hms])", text):
        seconds += int(number) * {"h": 3600, "m": 60, "s": 1}[unit]
    return seconds


def render_span(seconds: float) -> str:
    """Render a span of time as OpenAI's headers have it: `850ms`, `12s`, `6m0s`, `2h3m4s`."""
    if seconds < 1:
        return f"{floor(seconds * 1000)}ms"
    hours, rest = divmod(ceil(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
