"""How one of several equal servers is chosen. Pure: no I/O, no clock; counters live in the members, so that a switch of strategy
keeps them.

    least_busy            fewest requests per weight, ours and others', times the server's usual time where one is clearly slower;
                          the default
    round_robin           in turn
    equal_weighted        the lowest lifetime count
    weighted_round_robin  in turn, shares as the weights, evenly interleaved
    least_connections     fewest of our own requests
    least_response_time   lowest mean time; one without a sample first
    power_of_two          the less busy of two drawn at random
    prefix_affinity       least_busy less a bounded bonus for having the same beginning in its cache

Ties go to the cheaper one, then to the one chosen least often, so that a burst spreads.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

MAX_AFFINITY_BONUS = 2.0  # requests' worth: a cached beginning outweighs at most so much more load
MAX_REMEMBERED_PREFIXES = 8192  # beginnings
BLOCK_BYTES = 256
MAX_BLOCKS = 64
USUAL_PART = (
    0.03  # of a new sample in `typical_s`: lengths differ a lot, so it takes dozens to tell a slow server
)
SLOWER, SLOWEST = (
    2.0,
    8.0,
)  # times as long as at the fastest one: below, it may be chance; above, it is not believed
ENOUGH = 10  # samples before `typical_s` is believed: the first requests of a cold server take longer
NOTICED_S = 0.05  # less than that is nobody's concern
FORGETTING = 0.998  # per choice that passes an idle slow one over


@dataclass(slots=True, eq=False)
class Member:
    """One server as a strategy sees it.

    weight    shares of weighted_round_robin; also divides the load elsewhere (weight 2 takes twice as much)
    active    our own requests in flight, counted at once; total: all that were ever sent to it
    external  requests running or waiting in the server that are not ours, set by the owner before a choice
    mean_s    response time: the first sample, then (old + new) / 2 (system B's definition); last_s: the latest sample
    last_used_s   seconds since 1970; ramp: slow start, 0 < ramp <= 1, shrinks the weight; cost: breaks ties
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
    turn: float = 0.0  # state of the weighted rotation
    typical_s: float = 0.0  # response time over the last dozens of requests, for least_busy
    samples: int = 0  # that it was made of

    def record_start(self, now_s: float) -> None:
        """A request is sent to it."""
        self.active += 1
        self.total += 1
        self.last_used_s = now_s

    def record_end(self, took_s: float | None) -> None:
        """A request ended; None = without a sample (it failed, or was cancelled)."""
        self.active -= 1
        if took_s is not None:
            self.samples += 1
            self.typical_s += (took_s - self.typical_s) * max(USUAL_PART, 1 / self.samples)
            self.mean_s = took_s if self.mean_s is None else (self.mean_s + took_s) / 2
            self.last_s = took_s


class Balancer:
    """What strategies share: whose turn it is, who had which beginning, and a random generator."""

    def __init__(self, strategy: str = "least_busy", *, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._index = 0
        self._owners: OrderedDict[int, Member] = OrderedDict()
        self.strategy = strategy

    @property
    def strategy(self) -> str:
        return self._strategy

    @strategy.setter
    def strategy(self, name: str) -> None:
        if name not in _CHOOSERS:
            raise ValueError(f"{name!r} is no strategy; there are {', '.join(STRATEGIES)}")
        self._strategy = name
        self._chooser = _CHOOSERS[name]

    def choose(self, members: Sequence[Member], *, prefixes: Sequence[int] = ()) -> tuple[Member, str]:
        """Choose one of `members` (never empty); the caller then says `began`.

        Takes   prefixes: of the request, shortest first (see prefix_hashes)
        Gives   (member, reason): the strategy's name, `only_one`, or `affinity` when the cache decided
        """
        if len(members) == 1:
            return members[0], "only_one"
        if prefixes and self._strategy == "prefix_affinity":
            return self._by_prefix(members, prefixes)
        return self._chooser(self, members), self._strategy

    def remember(self, member: Member, prefixes: Sequence[int]) -> None:
        """The request with these prefixes was sent to `member`."""
        owners = self._owners
        for prefix in prefixes:
            owners[prefix] = member
            owners.move_to_end(prefix)
        while len(owners) > MAX_REMEMBERED_PREFIXES:
            owners.popitem(last=False)

    def forget(self, member: Member) -> None:
        """`member` is gone, or its cache is."""
        for prefix in [prefix for prefix, owner in self._owners.items() if owner is member]:
            del self._owners[prefix]

    # ---- strategies

    def _least_busy(self, members: Sequence[Member]) -> Member:
        fastest, slowest = inf, 0.0
        for member in members:
            if member.samples >= ENOUGH:
                usual = member.typical_s
                if usual > slowest:
                    slowest = usual
                if usual < fastest:
                    fastest = usual
        if slowest > fastest * SLOWER and slowest > fastest + NOTICED_S:
            return self._least_late(members, fastest)
        best, least = members[0], _load(members[0])
        for member in members[1:]:
            load = (member.active + member.external) / (member.weight * member.ramp)
            if load < least or (load == least and _is_before(member, best)):
                best, least = member, load
        return best

    def _least_late(self, members: Sequence[Member], fastest: float) -> Member:
        """Some take clearly longer than others: the fewest requests, this one included, times how much longer they take there."""
        best, least = members[0], inf
        for member in members:
            slower = member.typical_s / fastest if member.samples >= ENOUGH else 1.0
            if slower < SLOWER:
                slower = 1.0
            else:
                slower = min(slower, SLOWEST)
                if not member.active:
                    member.typical_s *= (
                        FORGETTING  # what it was is believed less and less, until it is tried again
                    )
            late = (member.active + member.external + 1) / (member.weight * member.ramp) * slower
            if late < least or (late == least and _is_before(member, best)):
                best, least = member, late
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
        """The smooth rotation: everyone gains its weight, the richest is chosen and pays the sum of all weights."""
        best, total = members[0], 0.0
        for member in members:
            weight = member.weight * member.ramp
            total += weight
            member.turn += weight
            if member.turn > best.turn:
                best = member
        best.turn -= total
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
        """One score: load per weight, less at most BONUS for the share of the beginning that the member had before."""
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
    """Of equally busy ones: the cheaper, then the one chosen less often for its weight."""
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
    "prefix_affinity": Balancer._least_busy,  # for requests without a beginning worth remembering
}
STRATEGIES: tuple[str, ...] = tuple(_CHOOSERS)


def align_total(newcomer: Member, members: Sequence[Member]) -> None:
    """Give a newcomer the present minimum of lifetime counts, so that `equal_weighted` does not flood it to make up for the past."""
    newcomer.total = min((member.total for member in members), default=0)


def hash_blocks(text: bytes, *, block: int = BLOCK_BYTES, most: int = MAX_BLOCKS) -> list[int]:
    """Give a hash for each whole leading block, each of all text up to its end: equal beginnings have equal hashes."""
    hashes: list[int] = []
    so_far = 0
    for at in range(0, min(len(text) // block, most) * block, block):
        so_far = hash((so_far, text[at : at + block]))
        hashes.append(so_far)
    return hashes


def compute_vram_weight(vram_gib: float, price_per_hour: float | None = None) -> float:
    """Give the weight of a server by its memory, and a fifth more where it costs less than one dollar an hour. Source: system B."""
    weight = 3.0 if vram_gib >= 80 else 2.0 if vram_gib >= 40 else 1.5 if vram_gib >= 24 else 1.0
    return weight * 1.2 if price_per_hour is not None and price_per_hour < 1.0 else weight
