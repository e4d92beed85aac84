"""Looks at files when they may have changed: as soon as the kernel tells of it, else every few seconds."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from appliance.base.clock import Clock
from appliance.base.file_events import Changes, FileEvents, FileMark, Place, marks_of
from appliance.base.logs import get_logger

log = get_logger("files")
GATHER_S = 0.2  # after the first event: those that come until then are one change
RARE_LOOK_S = 60.0  # what no event tells: a mount above a folder, a write through a mapping
MAX_ROUNDS = 5  # looks one after the other while new folders are found


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look has found.

    Attributes:
        places: Where the files are.
        is_settled: False = some may be in the middle of a change: look again after the usual time.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    is_settled: bool = True


Look = Callable[[frozenset[FileMark]], Awaitable[Looked]]


async def look_at_changes(look: Look, *, what: str, every_s: float, clock: Clock) -> None:
    """Call `look` at once and whenever something may have changed, until cancelled.

    A look that fails is logged; the next one follows after the usual time.

    Args:
        look: Takes the marks of files that are known to be whole; it may still find others.
        what: What is looked at, for the log.
        every_s: Seconds between two looks where the kernel does not tell of changes, and between two looks
            at what is in the middle of a change.
        clock: Tells when the next look is due.
    """
    events, told, looked = FileEvents(), "", Looked()
    changes = Changes()
    try:
        while True:
            try:
                looked = await _look_around(look, events, changes)
            except Exception:
                log.exception("look_failed", what=what)
                looked = Looked(looked.places, is_settled=False)
            if events.reason != told:
                told = events.reason
                _log_reason(what, told, every_s)
            changes = await _wait(events, clock, every_s, is_settled=looked.is_settled)
    finally:
        events.close()


async def _look_around(look: Look, events: FileEvents, changes: Changes) -> Looked:
    """Look until all folders that were found are watched."""
    looked = Looked()
    for _ in range(MAX_ROUNDS):
        looked = await look(await asyncio.to_thread(marks_of, changes.finished))
        if not await asyncio.to_thread(events.follow, looked.places):
            return looked
        changes = events.take()
    return Looked(looked.places, is_settled=False)


async def _wait(events: FileEvents, clock: Clock, every_s: float, *, is_settled: bool) -> Changes:
    """Wait until the next look is due; return what has happened.

    1. nothing tells of changes, or something is unsettled → a look after `every_s`, at the latest
    2. all is settled                                      → a look after RARE_LOOK_S, at the latest
    3. something came, went or is whole                    → a look now
    4. something grows                                     → a look after `every_s`, at the latest
    """
    began_s = clock.monotonic_s()
    is_usual = bool(events.reason) or not is_settled
    due_s = began_s + (every_s if is_usual else max(RARE_LOOK_S, every_s))  # 1, 2
    while (left_s := due_s - clock.monotonic_s()) > 0:
        if not await events.wait(left_s):
            break
        await asyncio.sleep(min(GATHER_S, every_s))
        changes = events.take()
        if changes.is_due:  # 3
            return changes
        if changes.is_growing:  # 4
            due_s = min(due_s, began_s + every_s)
    return Changes(is_due=True)


def _log_reason(what: str, reason: str, every_s: float) -> None:
    if reason:
        log.warning("files_not_watched", what=what, reason=reason, look_every_s=every_s)
    else:
        log.info("files_watched", what=what)
