"""Reads the settings again when the file of CONFIG_PATH changes (CONFIG_WATCH=1).

The file is looked at each second: a name that is renamed over (editors, atomic writes), a link that is turned
to another folder (`..data` of a ConfigMap) and a file that is written in place all show as another signature,
on network file systems, too. A file is read once it has stayed the same for one look.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.config_file import Signature, signature_of
from appliance.base.logs import get_logger

log = get_logger("reload")
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """What is known of the file.

    Attributes:
        read: Its signature when the settings were read last, whether they were taken or not.
        seen: Its signature at the latest look; None = it was not there.
    """

    read: Signature | None
    seen: Signature | None = None


def next_look(file: WatchedFile, now: Signature | None) -> tuple[WatchedFile, bool]:
    """Return what is known after a look, and whether the settings are to be read now.

    1. it is not there, or cannot be seen       → wait: a rename may be under way
    2. it is as it was read last                → nothing
    3. it is other than at the latest look      → wait: it may be half written
    4. it has stayed the same since then        → read it

    Args:
        file: What was known before.
        now: Its signature; None = it is not there.
    """
    looked = replace(file, seen=now)
    if now is None or now == file.read or now != file.seen:  # 1, 2, 3
        return looked, False
    return replace(looked, read=now), True  # 4


async def watch_config(
    path: Callable[[], Path | None],
    read: Signature | None,
    reload: Callable[[], None],
    *,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `reload` whenever the file has changed, until cancelled.

    Args:
        path: Returns the file, which a reload may change; None = there is none.
        read: The signature of the file that the settings in force were read from.
        reload: Asks for a reload.
        every_s: Seconds between two looks.
    """
    file = WatchedFile(read)
    while True:
        await asyncio.sleep(every_s)
        name = path()
        file, is_due = next_look(file, await asyncio.to_thread(_look, name) if name is not None else None)
        if is_due:
            log.info("config_changed", path=str(name))
            reload()


def _look(path: Path) -> Signature | None:
    try:
        return signature_of(path.stat())
    except OSError:
        return None
