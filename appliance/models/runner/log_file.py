"""The log of a llama-server: opened fresh for each start, read at its end, kept within bounds."""

import os
import re
from pathlib import Path

from appliance.base.logs import SECRETS, get_logger
from appliance.base.plain_text import one_line

log = get_logger("runner")
KEPT_LOGS = 3
MAX_LOG_BYTES = 16 << 20
TAIL_BYTES = 65_536
MAX_NAME_CHARS = 100
LOG_MODE = 0o640


def log_name(alias: str, what: int | str) -> str:
    """Return the name of the log file of an engine (by its port) or of a hook (by its key).

    Characters that cannot be in a name become underscores.
    """
    return f"{log_stem(alias)}_{what}.log"


def log_stem(alias: str) -> str:
    """Return how the names of a model's logs begin: aliases that differ in odd characters alone share it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", alias)[:MAX_NAME_CHARS]


def shown_line(line: bytes) -> str:
    """Return a line of a log as people see it: without escape sequences and known secrets."""
    return SECRETS.redact(one_line(line.decode("utf-8", "replace").rstrip("\r")))


def open_log(path: Path) -> int:
    """Open a fresh log and return its descriptor; the former ones are kept as .1, .2, .3 (blocks).

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(KEPT_LOGS - 1, 0, -1):
        older = Path(f"{path}.{number}")
        if older.exists():
            older.replace(f"{path}.{number + 1}")
    if path.exists():
        path.replace(f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, LOG_MODE)


def read_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, as people see them; none where it cannot be read (blocks)."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            return list(map(shown_line, file.read(TAIL_BYTES).splitlines()[-lines:]))
    except OSError:
        return []


def trim_log(path: Path) -> None:
    """Move the end of a log that has grown too large to `.1`; its process continues to write (blocks)."""
    try:
        with path.open("r+b") as file:
            begin = file.seek(0, os.SEEK_END) - MAX_LOG_BYTES
            if begin <= 0:
                return
            former = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, LOG_MODE)
            try:
                os.sendfile(former, file.fileno(), begin, MAX_LOG_BYTES)
            finally:
                os.close(former)
            file.truncate(0)  # the process writes at the end (O_APPEND), wherever that is
    except OSError as exc:
        log.warning("log_not_trimmed", path=str(path), reason=str(exc))
