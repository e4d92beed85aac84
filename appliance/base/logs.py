"""Structured logs: JSON lines (or a readable form on a terminal), secrets blanked before anything is written.

`SECRETS` holds every secret value the process knows; each event passes `blank_secrets` last. The blanking is a safety net
under the rule that nobody logs a secret, not a replacement for it.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, TextIO

import structlog

from appliance.base import jsons

BLANK = "[secret]"
_LOOKS_SECRET = re.compile(
    r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{6,}|\b(sk[-_][A-Za-z0-9_-]{6,})|((?:api[-_]?key|token|authorization|password|secret)[\"']?\s*[=:]\s*[\"']?(?:bearer\s+)?)"
    r"(?!\[secret\])[^\s\"',;&}]{4,}"
)


class Secrets:
    """The secret texts known to this process; blanking replaces each wherever it stands."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._blank_short = lru_cache(maxsize=2048)(self.blank)

    def learn(self, values: Iterable[str]) -> None:
        """Remember secrets; texts shorter than 6 characters are too common to blank."""
        self._known |= {v for v in values if len(v) >= 6}
        self._blank_short.cache_clear()
        longest_first = sorted(self._known, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def blank(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(BLANK, text)
        return _LOOKS_SECRET.sub(lambda m: (m.group(1) or m.group(3) or "") + BLANK, text)

    def blank_name(self, text: str) -> str:
        """Blank a short text that comes again and again (a model's name, a path): looked at once, then remembered."""
        return self._blank_short(text) if len(text) <= 256 else self.blank(text)


SECRETS = Secrets()


def _blank_value(value: Any) -> Any:
    if isinstance(value, str):
        return SECRETS.blank(value)
    if isinstance(value, (list, tuple)):
        return [_blank_value(v) for v in value]
    if isinstance(value, dict):
        return {k: _blank_value(v) for k, v in value.items()}
    if value is None or isinstance(value, (int, float, bool)):
        return value
    return SECRETS.blank(str(value))


def blank_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        event[key] = _blank_value(value)
    return event


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return jsons.dumps_text(event)


def configure(
    *, level: str, form: str, stream: TextIO | None = None, also: Callable[[str], None] | None = None
) -> None:
    """Set up logging for the process.

    Takes   level: debug|info|warning|error; form: json|console|auto (console on a terminal);
            also: called with every finished line (the ring buffer that control tails)
    """
    out = stream or sys.stdout
    is_console = form == "console" or (form == "auto" and out.isatty())

    def keep(_: Any, __: str, line: Any) -> Any:
        if also is not None:
            also(str(line))
        return line

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.format_exc_info,
            blank_secrets,
            structlog.dev.ConsoleRenderer(colors=is_console and out.isatty()) if is_console else _render_json,
            keep,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _join_standard_logging(level)


class _ToStructlog(logging.Handler):
    """Lines of libraries (aiohttp, grpc, asyncio) leave in our form too, blanked like ours."""

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
    """Give a logger; every room takes it from here."""
    return structlog.get_logger(name)


def set_level(level: str) -> None:
    """Change how much is logged, from the next line on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())))
