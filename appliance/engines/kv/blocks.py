"""The blocks that one engine has at this moment, and which of them the index must still hear of. Decides only; no clock, no network.

The index (kv_index.py) gets the state, not the steps: what was stored and removed again meanwhile costs nothing, and after the index was
away it is simply written anew. Several blocks of the engine can hold the same tokens (at other places of a prompt) and then share one
standard hash, which is gone only with the last of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.engines.kv.events import Cleared, EngineHash, Event, Removed, Stored

LAPSED_S = 86_400.0  # how long what may be wrong is believed


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """What the index must be told: blocks that are there (engine's hash, standard hash) and that are not, standard hashes that nothing
    has any more."""

    there: tuple[tuple[EngineHash, int], ...] = ()
    gone: tuple[EngineHash, ...] = ()
    gone_standard: tuple[int, ...] = ()


class Blocks:
    """The engine's blocks, bounded.

    Takes   most: blocks that are kept; those beyond are left out
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._standard: dict[EngineHash, int] = {}
        self._shared: Counter[int] = Counter()
        self._changed: set[EngineHash] = set()
        self._changed_standard: set[int] = set()
        self._doubted: set[EngineHash] = set()
        self._doubted_since_s: float | None = None

    def __len__(self) -> int:
        return len(self._standard)

    def __contains__(self, engine_hash: EngineHash) -> bool:
        return engine_hash in self._standard

    def has_standard(self, standard: int) -> bool:
        return standard in self._shared

    @property
    def has_changes(self) -> bool:
        return bool(self._changed or self._changed_standard)

    def apply(self, event: Event) -> int:
        """Take what the engine says; give how many blocks found no room."""
        if isinstance(event, Cleared):
            self.clear()
        elif isinstance(event, Removed):
            for engine_hash in event.hashes:
                self._remove(engine_hash)
        elif isinstance(event, Stored):
            return sum(not self._store(engine_hash, standard) for engine_hash, standard in event.blocks)
        return 0

    def clear(self) -> None:
        """It has no blocks any more."""
        for engine_hash in list(self._standard):
            self._remove(engine_hash)
        self._doubted_since_s = None

    def doubt(self, now_s: float) -> None:
        """Messages were lost, perhaps of removals: what is there now may be wrong, unless it is heard of again."""
        self._doubted |= self._standard.keys()
        if self._doubted_since_s is None:
            self._doubted_since_s = now_s

    def lapse(self, now_s: float) -> int:
        """Drop what has been in doubt for LAPSED_S; give how many blocks that were."""
        if self._doubted_since_s is None or now_s - self._doubted_since_s < LAPSED_S:
            return 0
        dropped = list(self._doubted)
        for engine_hash in dropped:
            self._remove(engine_hash)
        self._doubted_since_s = None
        return len(dropped)

    def take(self, most: int) -> BlockChanges:
        """Give up to `most` blocks whose state the index does not have yet, as it is now; they count as told."""
        hashes = [self._changed.pop() for _ in range(min(most, len(self._changed)))]
        standards = [self._changed_standard.pop() for _ in range(min(most, len(self._changed_standard)))]
        return self._state_of(hashes, standards)

    def all(self, most: int) -> Iterator[BlockChanges]:
        """Give everything in pieces of `most` blocks, each as it is when it is asked for. What changed until now counts as told."""
        self.forget_changes()
        hashes = list(self._standard)
        return (self._state_of(hashes[begin : begin + most], ()) for begin in range(0, len(hashes), most))

    def forget_changes(self) -> None:
        """The index is to be written anew as a whole: what changed until now need not be told by itself."""
        self._changed.clear()
        self._changed_standard.clear()

    def _state_of(self, hashes: Iterable[EngineHash], standards: Iterable[int]) -> BlockChanges:
        hashes = list(hashes)
        return BlockChanges(
            tuple((one, self._standard[one]) for one in hashes if one in self._standard),
            tuple(one for one in hashes if one not in self._standard),
            tuple(one for one in standards if one not in self._shared),
        )

    def _store(self, engine_hash: EngineHash, standard: int) -> bool:
        self._doubted.discard(engine_hash)
        known = self._standard.get(engine_hash)
        if known == standard:
            return True
        if known is not None:
            self._remove(engine_hash)
        elif len(self._standard) >= self._most:
            return False
        self._standard[engine_hash] = standard
        self._shared[standard] += 1
        self._changed.add(engine_hash)
        return True

    def _remove(self, engine_hash: EngineHash) -> None:
        standard = self._standard.pop(engine_hash, None)
        self._doubted.discard(engine_hash)
        if standard is None:
            return
        self._changed.add(engine_hash)
        self._shared[standard] -= 1
        if not self._shared[standard]:
            del self._shared[standard]
            self._changed_standard.add(standard)
