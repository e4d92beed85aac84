"""Reads the settings again when their files change (CONFIG_WATCH=1): CONFIG_PATH and APPLIANCE_ENV_FILE.

A name that is renamed over (editors, atomic writes), a link that is turned to another folder (`..data` of a
ConfigMap) and a file that is written in place all show as another signature. A file is read once it was
closed after it was written, or moved into place, or has stayed the same for a second.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.config_file import Signature, find_signature
from appliance.base.file_events import FileMark, places_of
from appliance.base.file_looks import Looked, look_at_changes
from appliance.base.logs import get_logger

log = get_logger("reload")
LOOK_EVERY_S = 1.0
STEADY_PART = 0.9  # of the time between two looks: the next one finds a file old enough


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """What is known of the file.

    Attributes:
        read: Its signature when the settings were read last, whether they were taken or not.
        seen: Its signature at the latest look; None = it was not there.
        since_s: When a look first found it as it was seen.
    """

    read: Signature | None
    seen: Signature | None = None
    since_s: float = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be waited for: it is as it was read."""
        return self.seen is not None and self.seen == self.read


def next_look(
    file: WatchedFile,
    now: Signature | None,
    *,
    finished: Collection[FileMark] = (),
    now_s: float = 0.0,
    steady_s: float = 0.0,
) -> tuple[WatchedFile, bool]:
    """Return what is known after a look, and whether the settings are to be read now.

    1. it is not there, or cannot be seen       → wait: a rename may be under way
    2. it is as it was read last                → nothing
    3. it is known to be whole                  → read it
    4. it is other than at the latest look      → wait: it may be half written
    5. it has not been so for long              → wait
    6. it has stayed the same since then        → read it

    Args:
        file: What was known before.
        now: Its signature; None = it is not there.
        finished: Marks of files that are known to be whole.
        now_s: The time, from any start.
        steady_s: Seconds that it must have stayed the same.
    """
    since_s = file.since_s if now == file.seen else now_s
    looked = replace(file, seen=now, since_s=since_s)
    if now is None or now == file.read:  # 1, 2
        return looked, False
    is_whole = now[1:] in finished  # 3
    if not is_whole and (now != file.seen or now_s - since_s < steady_s):  # 4, 5
        return looked, False
    return replace(looked, read=now), True  # 3, 6


async def watch_config(
    paths: Callable[[], list[Path]],
    read: Mapping[Path, Signature | None],
    reload: Callable[[], None],
    *,
    clock: Clock,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `reload` whenever one of the files has changed, until cancelled.

    Args:
        paths: Returns the files, which a reload may change.
        read: The signatures of the files that the settings in force were read from; of another file the first
            look is what counts as read.
        reload: Asks for a reload.
        clock: Tells for how long a file has stayed the same.
        every_s: Seconds between two looks where the kernel does not tell of changes.
    """
    looks = _ConfigLooks(paths, read, reload, clock, every_s * STEADY_PART)
    await look_at_changes(looks.look, what="configuration", every_s=every_s, clock=clock)


class _ConfigLooks:
    def __init__(
        self,
        paths: Callable[[], list[Path]],
        read: Mapping[Path, Signature | None],
        reload: Callable[[], None],
        clock: Clock,
        steady_s: float,
    ) -> None:
        self._paths, self._reload, self._clock, self._steady_s = paths, reload, clock, steady_s
        self._files = {path: WatchedFile(signature) for path, signature in read.items()}

    async def look(self, finished: Collection[FileMark]) -> Looked:
        """Look at all files once; ask for one reload where some are to be read."""
        paths, former, self._files = self._paths(), self._files, {}
        changed = []
        for path, now in zip(paths, await asyncio.to_thread(_look_all, paths), strict=True):
            file, is_due = next_look(
                former.get(path, WatchedFile(now)),
                now,
                finished=finished,
                now_s=self._clock.monotonic_s(),
                steady_s=self._steady_s,
            )
            self._files[path] = file
            changed += [str(path)] if is_due else []
        if changed:
            log.info("config_changed", path=", ".join(changed))
            self._reload()
        places = await asyncio.to_thread(places_of, map(Path.absolute, paths))
        return Looked(places, is_settled=all(file.is_settled for file in self._files.values()))


def _look_all(paths: list[Path]) -> list[Signature | None]:
    return [find_signature(path) for path in paths]
