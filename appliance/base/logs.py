"""Structured logs: JSON lines (or a readable form on a terminal); secrets are replaced before writing.

`SECRETS` holds every secret value that the process knows; each event passes `redact_event` last. This is a
safety net under the rule that secrets are not logged, not a replacement for it.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, TextIO

from appliance.base import jsons
from appliance.base.plain_text import hide_in_addresses, plain_text


@contextmanager
def _without_rich() -> Iterator[None]:
    """Let structlog find no rich, which it loads where it can: 4.6 MB for a form of tracebacks not used here.

    None in `sys.modules` says that a module is not installed. Afterwards rich can be imported as ever.
    """
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["rich"]


with _without_rich():
    import structlog

REDACTED = "[secret]"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_-])(api_?keys?|keys?|tokens?|secrets?|password|passwd|pass|credentials?|code|auth|authorization|cookie)$"
)
_SECRET_WORDS = {
    *(
        "key",
        "keys",
        "apikey",
        "token",
        "tokens",
        "secret",
        "secrets",
        "password",
        "passwd",
        "passphrase",
        "pass",
    ),
    *("pwd", "credential", "credentials", "auth", "authorization", "cookie", "pat"),
}
# Of a name that has such a word: what it stands for is not the secret itself.
_NO_SECRETS = {
    *(
        "file",
        "path",
        "dir",
        "env",
        "name",
        "names",
        "id",
        "ids",
        "header",
        "type",
        "format",
        "length",
        "limit",
    ),
    *("count", "size", "ttl", "parallelism"),
}
_PASSWORD = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@]+)@")
# 1. a bearer token   2. a key by its form   3. a field of JSON, NAME=value, a parameter of a query: any value
# 4. `name: value`, as in headers and YAML, and in prose ("token: whatever"): a value that no word looks like
_NAMES = r"(?:api[-_]?key|token|authorization|password|secret)"
_LOOKS_SECRET = re.compile(
    r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{6,}|\b(sk[-_][A-Za-z0-9_-]{6,})"
    rf"|({_NAMES}(?:[\"']\s*[=:]\s*|=)[\"']?(?!bearer\s+KEY`)(?:bearer\s+)?)(?!\[secret\])[^\s\"',;&}}]{{4,}}"
    rf"|({_NAMES}\s*[=:]\s*[\"']?(?!bearer\s+KEY`)(?:(?:bearer|basic)\s+)?)"
    r"(?!\[secret\])(?=[^\s\"',;&}]*\d)(?=[^\s\"',;&}]*[a-z])[^\s\"',;&}]{6,}"
)


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable or field of this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def is_secret_variable(name: str) -> bool:
    """Whether the value of a variable of any program is a secret: MY_TOKEN, API_KEY_2, DB_PASSWORD_MAIN."""
    words = [word.rstrip("0123456789") for word in name.lower().split("_") if not word.isdigit()]
    return bool(words) and words[-1] not in _NO_SECRETS and not _SECRET_WORDS.isdisjoint(words)


def secrets_of_words(words: Sequence[str]) -> Iterator[str]:
    """Yield the secrets in a command line, as its flags and its addresses name them.

    1. `--api-key VALUE`, `--api-key=VALUE`, `NAME_TOKEN=VALUE`, also in the words of a shell's command
    2. `http://user:password@host`
    """
    parts = [part for word in words for part in ([word] if " " not in word else word.split())]
    for name, after in pairwise([*parts, ""]):
        flag, equals, value = name.partition("=")
        has_value = equals or (name.startswith("-") and not after.startswith("-"))
        if has_value and is_secret_variable(flag.lstrip("-").replace("-", "_")):  # 1
            yield (value if equals else after).strip("\"'")
        yield from secrets_of_address(name)  # 2


def hide_words(words: Sequence[str]) -> list[str]:
    """Return a command line for people: with `[secret]` for each secret in it, whatever its length.

    1. `--api-key VALUE`, `--api-key=VALUE`, `NAME_TOKEN=VALUE`: the value, unless a variable stands for it
       (`$NAME`), or it is a number of tokens
    2. the same inside of one word, as in the command of a shell, and in addresses
    3. secrets that are known, or look like some
    """
    shown = list(words)
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        after = words[at + 1] if at + 1 < len(words) else ""
        if " " not in flag and is_secret_variable(flag.lstrip("-").replace("-", "_")):  # 1
            if equals and _is_hidden(flag, value):
                shown[at] = f"{flag}={REDACTED}"
            elif not equals and flag.startswith("-") and _is_hidden(flag, after) and after[:1] != "-":
                shown[at + 1] = REDACTED
        if " " in word or "://" in word:  # 2
            for secret in secrets_of_words([word]):
                if _is_hidden("", secret):
                    shown[at] = shown[at].replace(secret, REDACTED)
    return [SECRETS.redact(hide_in_addresses(word, REDACTED)) for word in shown]  # 3


def _is_hidden(flag: str, value: str) -> bool:
    """Whether the value of a flag that may name a secret is one."""
    return bool(value) and not value.startswith("$") and not (value.isdigit() and "token" in flag.lower())


def secrets_of_address(text: str) -> Iterator[str]:
    """Yield the password of each address in a text."""
    for found in _PASSWORD.finditer(text):
        yield found[1]


class Secrets:
    """The secret texts known to this process; `redact` replaces each wherever it appears.

    Attributes:
        generation: Changes when one is added: a text that was redacted before may have to be again.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.generation = 0
        self._redact_short = lru_cache(maxsize=2048)(self.redact)

    def learn(self, values: Iterable[str]) -> None:
        """Add secrets; texts shorter than 6 characters are too common to be replaced."""
        self._known |= {v for v in values if len(v) >= 6}
        self._redact_short.cache_clear()
        self.generation += 1
        longest_first = sorted(self._known, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def redact(self, text: str) -> str:
        """Replace every known secret, and whatever looks like one."""
        if self._pattern is not None:
            text = self._pattern.sub(REDACTED, text)
        return _LOOKS_SECRET.sub(lambda m: (m.group(1) or m.group(3) or m.group(4) or "") + REDACTED, text)

    def redact_name(self, text: str) -> str:
        """Redact a short text that is logged again and again (a model, a path); results are cached."""
        return self._redact_short(text) if len(text) <= 256 else self.redact(text)


SECRETS = Secrets()


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return SECRETS.redact(value)
    if isinstance(value, (list, tuple)):
        return [_redact_value(v) for v in value]
    if isinstance(value, dict):
        return {k: _redact_value(v) for k, v in value.items()}
    if value is None or isinstance(value, (int, float, bool)):
        return value
    return SECRETS.redact(str(value))


def redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact every value of a log event; a structlog processor."""
    for key, value in event.items():
        event[key] = _redact_value(value)
    return event


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return jsons.dumps_text(event)


def configure(
    *, level: str, form: str, stream: TextIO | None = None, on_line: Callable[[str], None] | None = None
) -> None:
    """Set up logging for the process.

    Args:
        level: debug, info, warning or error.
        form: json, console, or auto (console on a terminal, else json).
        stream: Where lines go; None = stdout.
        on_line: Called with every finished line; there is no colour in it, nor a line break.
    """
    out = stream or sys.stdout
    is_console = form == "console" or (form == "auto" and out.isatty())
    render_plain = structlog.dev.ConsoleRenderer(colors=False) if is_console else _render_json
    render_shown = structlog.dev.ConsoleRenderer(colors=True) if is_console and out.isatty() else render_plain

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        shown = str(render_shown(logger, method, dict(event)))
        if on_line is not None:
            is_coloured = render_shown is not render_plain
            plain = str(render_plain(logger, method, dict(event))) if is_coloured else shown
            for line in plain_text(plain).split("\n"):
                on_line(line)
        return shown

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            redact_event,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _join_standard_logging(level)


class _ToStructlog(logging.Handler):
    """Logs the messages of libraries (aiohttp, grpc, asyncio) in the same format, secrets redacted."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger(record.name).log(
                record.levelno, record.getMessage(), exc_info=record.exc_info or None
            )
        except Exception:
            self.handleError(record)


def _join_standard_logging(level: str) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(getattr(logging, level.upper()), logging.WARNING))


def get_logger(name: str) -> Any:
    """Return a logger; every package gets its logger here."""
    return structlog.get_logger(name)


def bind(**values: Any) -> None:
    """Add values to each further line of this task."""
    structlog.contextvars.bind_contextvars(**values)


def bound(name: str) -> Any:
    """Return a value that `bind` added in this task; None if there is none."""
    return structlog.contextvars.get_contextvars().get(name)


def set_level(level: str) -> None:
    """Change how much is logged, from the next line on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())))
