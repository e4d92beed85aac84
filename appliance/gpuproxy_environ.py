"""The environment of aiserve-gpuproxyd's programs: `.env` of the working folder, and that project's names.

The environment wins over the file. What has no effect in this version is named, not refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.base.files import read_text_file
from appliance.base.settings import InvalidSettings, Problem

FILE: Final = Path(".env")
PORT: Final = "8080"
RENAMED: Final = {"SERVER_HOST": "PROXY_HOST", "SERVER_PORT": "PROXY_PORT"}
DEFAULTS: Final = {"ACCOUNTS": "1", "REGISTRATION": "open", "GRPC_PORT": "9090", "MARKET": "1"}
# Of later versions, or of the original alone.
NO_EFFECT: Final = re.compile(
    r"ENVIRONMENT|REDIS_MIN_IDLE_CONNS|LOG_FILE|AISERVE_LOG_FILE|SYSLOG_\w+|"
    r"STRIPE_\w+|AFTERDARK_\w+|CRYPTO_\w+|BUY(ING|_\w+)"
)
_LINE: Final = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")
_QUOTED: Final = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)')\s*(?:#.*)?""")
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
_ESCAPED: Final = re.compile(r"\\(.)")
_SIGNS: Final = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class GpuproxyEnviron:
    """The environment with which the appliance is run.

    Attributes:
        values: All variables.
        without_effect: The names of those that are set and not used.
    """

    values: dict[str, str]
    without_effect: tuple[str, ...]


def read_environ(environ: Mapping[str, str], path: Path = FILE) -> GpuproxyEnviron:
    """Return the environment for the appliance.

    1. a variable of the environment, however empty        → as it is
    2. else a line of the file                             → that
    3. else SERVER_HOST, SERVER_PORT under our names       → that; the port is 8080 where neither is set
    4. else what these programs switch on                  → accounts, registration, and renting where there
       are accounts

    Args:
        environ: As os.environ.
        path: The file; it may be missing.

    Raises:
        InvalidSettings: The file cannot be read, or a line of it is none.
    """
    values = {**read_env_file(path), **environ}
    for theirs, ours in RENAMED.items():
        if values.get(theirs) and not values.get(ours):
            values[ours] = values[theirs]
    if not values.get("PROXY_PORT"):
        values["PROXY_PORT"] = values.get("PORT") or PORT
    if not values.get("GRPC_HOST") and values.get("PROXY_HOST"):
        values["GRPC_HOST"] = values["PROXY_HOST"]
    for name, default in DEFAULTS.items():
        if not values.get(name):
            values[name] = values["ACCOUNTS"] if name == "MARKET" else default
    unused = sorted(name for name, value in values.items() if value and NO_EFFECT.fullmatch(name))
    return GpuproxyEnviron({name: values[name] for name in values if name not in unused}, tuple(unused))


def read_env_file(path: Path) -> dict[str, str]:
    """Read a file of NAME=value lines, as godotenv does: quotes, comments behind a value, `export`.

    Args:
        path: The file; a missing one is empty.

    Raises:
        InvalidSettings: It cannot be read, or a line of it is none.
    """
    try:
        text = read_text_file(path)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InvalidSettings([_problem(path, f"It cannot be read: {reason}.")]) from None
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        value = _read_value(match[2]) if match else None
        if match is None or value is None:
            raise InvalidSettings([_problem(path, f"Line {number} is neither.")])
        values[match[1]] = value
    return values


def _read_value(text: str) -> str | None:
    """Return the value of a line; None = a quote is not closed."""
    if text.lstrip()[:1] in ("'", '"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            return None
        if match[1] is not None:
            return _ESCAPED.sub(lambda sign: _SIGNS.get(sign[1], sign[1]), match[1])
        return match[2]
    return _COMMENT.sub("", text).strip()


def _problem(path: Path, remedy: str) -> Problem:
    return Problem(str(path), "", "NAME=value lines, and comments that begin with #", remedy)
