"""How one of several equal servers is chosen. Pure: no I/O, no clock.

Counters live in the members, so that a change of the strategy keeps them.

    least_busy             fewest requests per weight, those of other clients included; a server that is
                           clearly N times slower counts as N times busier; the default
    round_robin            in turn
    equal_weighted         the lowest lifetime count
    weighted_round_robin   in turn, shares by weight, evenly interleaved
    least_connections      fewest requests of our own
    least_response_time    lowest mean time; a server without a sample first
    power_of_two           the less busy of two drawn at random
    prefix_affinity        least_busy, less a bounded bonus for having the same prefix in its cache

Ties go to the cheaper server, then to the one chosen least often, so that a burst spreads.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

MAX_AFFINITY_BONUS = 2.0  # in requests: a cached prefix outweighs at most this much more load
MAX_REMEMBERED_PREFIXES = 8192
BLOCK_BYTES = 256
MAX_BLOCKS = 64

# When least_busy counts a server as slow:
TYPICAL_SHARE = 0.03  # of a new sample in `typical_s`: lengths differ a lot, so one sample says little
MIN_SLOWNESS = 2.0  # times the fastest server's typical time; less may be chance
MAX_SLOWNESS = 8.0  # more is not believed
MIN_SAMPLES = 10  # before `typical_s` is believed: the first requests of a cold server take longer
MIN_DIFFERENCE_S = 0.05  # a smaller difference does not matter
FORGETTING = 0.998  # factor for `typical_s` of an idle slow server, for each choice that passes it over


@dataclass(slots=True, eq=False)
class Member:
    """One server as a strategy sees it.

    Attributes:
        name: The server's name.
        weight: Shares of weighted_round_robin; elsewhere it divides the load (weight 2 takes twice as much).
        active: Our own requests in flight, counted at once.
        total: Our own requests ever sent to it.
        external: Requests of other clients, running or queued in the server; set before each choice.
        mean_s: Response time: the first sample, then (old + new) / 2; see docs/compatibility.md.
        last_s: The latest sample.
        last_used_s: Seconds since 1970.
        ramp: Slow start: 0 < ramp <= 1, shrinks the weight.
        cost: Breaks ties.
        rotation: State of the weighted rotation.
        typical_s: Response time over the last dozens of requests, for least_busy.
        samples: How many `typical_s` is made of.
    """

    name: str
    weight: float = 1.0
    active: int = 0
    total: int = 0
    external: float = 0.0
    mean_s: float | None = None
    last_s: float | None = None
    last_used_s: float | None = None
    ramp: float = 1.0
    cost: float = 0.0
    rotation: float = 0.0
    typical_s: float = 0.0
    samples: int = 0

    def record_start(self, now_s: float) -> None:
        """Count a request that is sent to it."""
        self.active += 1
        self.total += 1
        self.last_used_s = now_s

    def record_end(self, took_s: float | None) -> None:
        """Count the end of a request; `took_s` None = no sample (it failed, or was cancelled)."""
        self.active -= 1
        if took_s is not None:
            self.samples += 1
            self.typical_s += (took_s - self.typical_s) * max(TYPICAL_SHARE, 1 / self.samples)
            self.mean_s = took_s if self.mean_s is None else (self.mean_s + took_s) / 2
            self.last_s = took_s


class Balancer:
    """Chooses by a strategy; keeps what strategies share: rotation, known prefixes, a random source.

    Args:
        strategy: One of STRATEGIES; can be changed later.
        seed: Of the random source, for tests; None = random.
    """

    def __init__(self, strategy: str = "least_busy", *, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._index = 0
        self._owners: OrderedDict[int, Member] = OrderedDict()
        self.strategy = strategy

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self._strategy

    @strategy.setter
    def strategy(self, name: str) -> None:
        if name not in _CHOOSERS:
            raise ValueError(f"unknown strategy {name!r}; allowed: {', '.join(STRATEGIES)}")
        self._strategy = name
        self._chooser = _CHOOSERS[name]

    def choose(self, members: Sequence[Member], *, prefixes: Sequence[int] = ()) -> tuple[Member, str]:
        """Choose one of `members`; the caller then calls its `record_start`.

        Args:
            members: Never empty.
            prefixes: Hashes of the request's prefixes, shortest first; see `hash_blocks`.

        Returns:
            (member, reason); reason: the strategy's name, `only_one`, or `affinity` if the cache decided.
        """
        if len(members) == 1:
            return members[0], "only_one"
        if prefixes and self._strategy == "prefix_affinity":
            return self._by_prefix(members, prefixes)
        return self._chooser(self, members), self._strategy

    def remember(self, member: Member, prefixes: Sequence[int]) -> None:
        """Note that a request with these prefixes was sent to `member`."""
        owners = self._owners
        for prefix in prefixes:
            owners[prefix] = member
            owners.move_to_end(prefix)
        while len(owners) > MAX_REMEMBERED_PREFIXES:
            owners.popitem(last=False)

    def forget(self, member: Member) -> None:
        """Drop all prefixes of `member`: it was removed, or its cache was cleared."""
        for prefix in [prefix for prefix, owner in self._owners.items() if owner is member]:
            del self._owners[prefix]

    # ---- strategies

    def _least_busy(self, members: Sequence[Member]) -> Member:
        fastest, slowest = inf, 0.0
        for member in members:
            if member.samples >= MIN_SAMPLES:
                typical_s = member.typical_s
                if typical_s > slowest:
                    slowest = typical_s
                if typical_s < fastest:
                    fastest = typical_s
        if slowest > fastest * MIN_SLOWNESS and slowest > fastest + MIN_DIFFERENCE_S:
            return self._least_delayed(members, fastest)
        best, least = members[0], _load(members[0])
        for member in members[1:]:
            load = (member.active + member.external) / (member.weight * member.ramp)
            if load < least or (load == least and _is_before(member, best)):
                best, least = member, load
        return best

    def _least_delayed(self, members: Sequence[Member], fastest: float) -> Member:
        """Choose where some servers are slow: the fewest requests, the new one included, times slowness."""
        best, least = members[0], inf
        for member in members:
            slowness = member.typical_s / fastest if member.samples >= MIN_SAMPLES else 1.0
            if slowness < MIN_SLOWNESS:
                slowness = 1.0
            else:
                slowness = min(slowness, MAX_SLOWNESS)
                if not member.active:
                    member.typical_s *= FORGETTING  # believed less and less, until it is tried again
            delay = (member.active + member.external + 1) / (member.weight * member.ramp) * slowness
            if delay < least or (delay == least and _is_before(member, best)):
                best, least = member, delay
        return best

    def _round_robin(self, members: Sequence[Member]) -> Member:
        self._index += 1
        return members[(self._index - 1) % len(members)]

    def _equal_weighted(self, members: Sequence[Member]) -> Member:
        best = members[0]
        for member in members[1:]:
            if member.total < best.total:
                best = member
        return best

    def _weighted_round_robin(self, members: Sequence[Member]) -> Member:
        """Rotate smoothly: each gains its weight, the highest is chosen and pays the sum of all weights."""
        best, total = members[0], 0.0
        for member in members:
            weight = member.weight * member.ramp
            total += weight
            member.rotation += weight
            if member.rotation > best.rotation:
                best = member
        best.rotation -= total
        return best

    def _least_connections(self, members: Sequence[Member]) -> Member:
        best = members[0]
        for member in members[1:]:
            if member.active < best.active or (member.active == best.active and member.total < best.total):
                best = member
        return best

    def _least_response_time(self, members: Sequence[Member]) -> Member:
        best = members[0]
        for member in members[1:]:
            mine, other = member.mean_s, best.mean_s
            if mine == other:
                if member.total < best.total:
                    best = member
            elif other is not None and (mine is None or mine < other):
                best = member
        return best

    def _power_of_two(self, members: Sequence[Member]) -> Member:
        count = len(members)
        one = int(self._random.random() * count)
        two = int(self._random.random() * (count - 1))
        first, second = members[one], members[two + (two >= one)]
        return second if _load(second) < _load(first) else first

    def _by_prefix(self, members: Sequence[Member], prefixes: Sequence[int]) -> tuple[Member, str]:
        """Choose by load per weight, less a bonus for the share of the prefix that the member has cached."""
        matched: dict[Member, int] = {}
        owners = self._owners
        for number, prefix in enumerate(prefixes, 1):
            owner = owners.get(prefix)
            if owner is not None:
                matched[owner] = number
        best, least = members[0], inf
        for member in members:
            score = _load(member) - MAX_AFFINITY_BONUS * matched.get(member, 0) / len(prefixes)
            if score < least or (score == least and _is_before(member, best)):
                best, least = member, score
        return best, "affinity" if best in matched else "prefix_affinity"


def _load(member: Member) -> float:
    return (member.active + member.external) / (member.weight * member.ramp)


def _is_before(member: Member, other: Member) -> bool:
    """Whether `member` comes first of two equally busy ones: cheaper, or chosen less often by weight."""
    if member.cost != other.cost:
        return member.cost < other.cost
    return member.total * other.weight < other.total * member.weight


_CHOOSERS: dict[str, Callable[[Balancer, Sequence[Member]], Member]] = {
    "least_busy": Balancer._least_busy,
    "round_robin": Balancer._round_robin,
    "equal_weighted": Balancer._equal_weighted,
    "weighted_round_robin": Balancer._weighted_round_robin,
    "least_connections": Balancer._least_connections,
    "least_response_time": Balancer._least_response_time,
    "power_of_two": Balancer._power_of_two,
    "prefix_affinity": Balancer._least_busy,  # for requests without a prefix worth remembering
}
STRATEGIES: tuple[str, ...] = tuple(_CHOOSERS)


def align_total(newcomer: Member, members: Sequence[Member]) -> None:
    """Set a new member's total to the present minimum, so that `equal_weighted` does not flood it."""
    newcomer.total = min((member.total for member in members), default=0)


def hash_blocks(text: bytes, *, block: int = BLOCK_BYTES, most: int = MAX_BLOCKS) -> list[int]:
    """Hash the prefixes of a text, one for each complete block: equal prefixes have equal hashes.

    Args:
        text: The text.
        block: Bytes of a block.
        most: Most blocks.

    Returns:
        One hash for each complete leading block, shortest prefix first.
    """
    hashes: list[int] = []
    so_far = 0
    for at in range(0, min(len(text) // block, most) * block, block):
        so_far = hash((so_far, text[at : at + block]))
        hashes.append(so_far)
    return hashes


def compute_vram_weight(vram_gib: float, price_per_hour: float | None = None) -> float:
    """Compute a server's weight from its memory; a fifth more if it costs less than one dollar an hour.

    Args:
        vram_gib: GPU memory in GiB.
        price_per_hour: In dollars; None = unknown.

    Source:
        See docs/compatibility.md.
    """
    weight = 3.0 if vram_gib >= 80 else 2.0 if vram_gib >= 40 else 1.5 if vram_gib >= 24 else 1.0
    return weight * 1.2 if price_per_hour is not None and price_per_hour < 1.0 else weight
