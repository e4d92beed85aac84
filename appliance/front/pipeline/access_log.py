"""The access log: one line per request.

Lines are buffered and written together, a few times a second: one write per request would cost more than the
rest of the line.
"""

import sys
from collections.abc import Callable
from typing import TextIO

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.logs import SECRETS
from appliance.engines.receipts import Receipt

MAX_BUFFERED_LINES = 256  # then they are written without waiting for `flush`


class AccessLog:
    """Writes the lines. `flush` is called by the server's ticker and at shutdown.

    Args:
        form: json, console, or auto (console on a terminal, else json).
        stream: Where lines go; None = stdout.
        on_line: Called with each line's time (seconds since 1970) and text; None = no copies.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        form: str = "json",
        stream: TextIO | None = None,
        on_line: Callable[[float, str], None] | None = None,
    ) -> None:
        self._clock = clock
        self._stream = stream or sys.stdout
        self._is_console = form == "console" or (form == "auto" and self._stream.isatty())
        self._on_line = on_line
        self._lines: list[str] = []
        self._rendered = (0, "")  # the last second, and its text

    def write(
        self,
        receipt: Receipt,
        *,
        method: str,
        path: str,
        peer: str,
        sent_bytes: int,
    ) -> None:
        """Add one request's line: JSON with the receipt's facts, or a short text. Never a body, never a key.

        Args:
            peer: The caller's address.
            sent_bytes: Of the response's body.
        """
        now_s = self._clock.now_s()
        # A client may have put a secret into either.
        path, model = SECRETS.redact_name(path), SECRETS.redact_name(receipt.model)
        error = SECRETS.redact(receipt.error) if receipt.error else ""
        if self._is_console:
            line = (
                f"{format_rfc3339(now_s, fraction_digits=3)} {peer} {method} {path} {receipt.status}"
                f" {receipt.total_ms:.1f}ms model={model or '-'} backend={receipt.backend or '-'} {error}"
            ).rstrip()
        else:
            line = jsons.dumps_text(
                {
                    "event": "request",
                    "level": "info",
                    "ts": self._second(now_s),
                    "id": receipt.id,
                    "peer": peer,
                    "method": method,
                    "path": path,
                    "status": receipt.status,
                    "finish": receipt.finish_label,
                    "ms": round(receipt.total_ms, 2),
                    "bytes": sent_bytes,
                    "stream": receipt.streamed,
                    "model": model,
                    "served_model": receipt.served_model,
                    "backend": receipt.backend,
                    "endpoint": receipt.endpoint,
                    "attempts": len(receipt.attempts),
                    "upstream_ms": round(receipt.upstream_ms, 2),
                    "prompt_tokens": receipt.prompt_tokens,
                    "completion_tokens": receipt.completion_tokens,
                    "error": error,
                }
            )
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(now_s, line)
        if len(self._lines) >= MAX_BUFFERED_LINES:
            self.flush()

    def _second(self, now_s: float) -> str:
        """Render the time with milliseconds; the date is rendered once a second, not once a line."""
        second = int(now_s)
        if self._rendered[0] != second:
            self._rendered = (second, format_rfc3339(second, fraction_digits=3)[:-4])
        return f"{self._rendered[1]}{int(now_s % 1 * 1000):03d}Z"

    def flush(self) -> None:
        """Write the buffered lines."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
