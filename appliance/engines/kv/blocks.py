"""The blocks that one engine has, and which of them the index does not have yet. Pure: no clock, no network.

The index gets the state, not the single events: a block that was stored and removed meanwhile costs nothing,
and after a failure of the index everything is written again. Several blocks of the engine can hold the same
tokens (at other positions of a prompt). They share one standard hash, which is removed with the last of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance.engines.kv.events import Cleared, EngineHash, Event, Removed, Stored

UNCERTAIN_S = 86_400.0  # a block that may be wrong is kept so long


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """What the index must be brought to.

    Attributes:
        stored: Blocks that the engine has, as (engine's hash, standard hash).
        removed: Blocks that it has no longer.
        removed_standard: Standard hashes that no block has any more.
    """

    stored: tuple[tuple[EngineHash, int], ...] = ()
    removed: tuple[EngineHash, ...] = ()
    removed_standard: tuple[int, ...] = ()


class Blocks:
    """The engine's blocks, `max_blocks` at most; further ones are left out."""

    def __init__(self, *, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._standard: dict[EngineHash, int] = {}
        self._shared: Counter[int] = Counter()  # standard hash → number of blocks that have it
        self._changed: set[EngineHash] = set()
        self._changed_standard: set[int] = set()
        self._uncertain: set[EngineHash] = set()
        self._uncertain_since_s: float | None = None

    def __len__(self) -> int:
        return len(self._standard)

    def __contains__(self, engine_hash: EngineHash) -> bool:
        return engine_hash in self._standard

    def has_standard(self, standard: int) -> bool:
        """Whether a block has this standard hash."""
        return standard in self._shared

    @property
    def has_changes(self) -> bool:
        """Whether there is anything that the index does not have yet."""
        return bool(self._changed or self._changed_standard)

    def apply(self, event: Event) -> int:
        """Apply an event; return how many blocks were left out because there are too many."""
        if isinstance(event, Cleared):
            self.clear()
        elif isinstance(event, Removed):
            for engine_hash in event.hashes:
                self._remove(engine_hash)
        elif isinstance(event, Stored):
            return sum(not self._store(engine_hash, standard) for engine_hash, standard in event.blocks)
        return 0

    def clear(self) -> None:
        """Remove all blocks."""
        for engine_hash in list(self._standard):
            self._remove(engine_hash)
        self._uncertain_since_s = None

    def mark_uncertain(self, now_s: float) -> None:
        """Note that messages were lost, perhaps removals: blocks may be wrong until they are stored again."""
        self._uncertain |= self._standard.keys()
        if self._uncertain_since_s is None:
            self._uncertain_since_s = now_s

    def expire_uncertain(self, now_s: float) -> int:
        """Remove the blocks that were uncertain for UNCERTAIN_S; return how many."""
        if self._uncertain_since_s is None or now_s - self._uncertain_since_s < UNCERTAIN_S:
            return 0
        expired = list(self._uncertain)
        for engine_hash in expired:
            self._remove(engine_hash)
        self._uncertain_since_s = None
        return len(expired)

    def take_changes(self, limit: int) -> BlockChanges:
        """Return up to `limit` blocks that the index lacks, as they are; it counts as having them then."""
        hashes = [self._changed.pop() for _ in range(min(limit, len(self._changed)))]
        standards = [self._changed_standard.pop() for _ in range(min(limit, len(self._changed_standard)))]
        return self._state_of(hashes, standards)

    def take_all(self, limit: int) -> Iterator[BlockChanges]:
        """Return all blocks in pieces of `limit`, each as it is when the iterator reaches it.

        The index counts as having what changed until now; later changes are kept for `take_changes`.
        """
        self.discard_changes()
        hashes = list(self._standard)
        return (self._state_of(hashes[begin : begin + limit], ()) for begin in range(0, len(hashes), limit))

    def discard_changes(self) -> None:
        """Forget what changed: the whole index will be written again."""
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
        """Store a block; return False if there are too many.

        1. it is stored already              → nothing
        2. its hash now means other tokens   → replaced
        3. there are too many                → left out
        4. it is new                         → stored
        """
        self._uncertain.discard(engine_hash)
        known = self._standard.get(engine_hash)
        if known == standard:  # 1
            return True
        if known is not None:  # 2
            self._remove(engine_hash)
        elif len(self._standard) >= self._max_blocks:  # 3
            return False
        self._standard[engine_hash] = standard  # 4
        self._shared[standard] += 1
        self._changed.add(engine_hash)
        return True

    def _remove(self, engine_hash: EngineHash) -> None:
        standard = self._standard.pop(engine_hash, None)
        self._uncertain.discard(engine_hash)
        if standard is None:
            return
        self._changed.add(engine_hash)
        self._shared[standard] -= 1
        if not self._shared[standard]:
            del self._shared[standard]
            self._changed_standard.add(standard)
