"""The access log: one line per request.

Lines are buffered and written together, a few times a second: one write per request would cost more than the
rest of the line.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TextIO

from appliance.base import jsons
from appliance.base.clock import Clock, format_rfc3339
from appliance.base.logs import SECRETS
from appliance.base.plain_text import one_line
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt

MAX_BUFFERED_LINES = 64  # then they are written without waiting for `flush`, which would take long
MAX_KEPT_CHARACTERS = 256  # of a path or a model; longer ones are rendered each time
EMPTY = '""'


def _render_call(method: str, path: str, status: int, finish: str, generation: int) -> str:
    """Render some fields of a line; the path may hold a secret. `generation`: of the known secrets."""
    fields = {"method": method, "path": SECRETS.redact(path), "status": status, "finish": finish}
    return jsons.dumps_text(fields)[1:-1]


def _render_route(model: str, served_model: str, backend: str, endpoint: str, generation: int) -> str:
    """Render some fields of a line; the model may hold a secret. `generation`: of the known secrets."""
    fields = {
        "model": SECRETS.redact(model),
        "served_model": SECRETS.redact(served_model),
        "backend": backend,
        "endpoint": endpoint,
    }
    return jsons.dumps_text(fields)[1:-1]


# Most lines are like the ones before in these fields.
_render_call_once = lru_cache(maxsize=512)(_render_call)
_render_route_once = lru_cache(maxsize=512)(_render_route)


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
        if self._is_console:
            line = self._render_for_people(
                now_s, receipt, method=method, path=path, peer=peer, sent_bytes=sent_bytes
            )
        else:
            line = self._render_json(
                now_s, receipt, method=method, path=path, peer=peer, sent_bytes=sent_bytes
            )
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(now_s, line)
        if len(self._lines) >= MAX_BUFFERED_LINES:
            self.flush()

    def _render_for_people(
        self, now_s: float, receipt: Receipt, *, method: str, path: str, peer: str, sent_bytes: int
    ) -> str:
        """Render a line that says how the response ended, unless it is `done`. Callers chose some of it."""
        path, model = SECRETS.redact_name(path), SECRETS.redact_name(receipt.model)
        error = SECRETS.redact(receipt.error) if receipt.error else ""
        finish = "" if receipt.finish is Finish.DONE else f" {receipt.finish_label}"
        return one_line(
            f"{format_rfc3339(now_s, fraction_digits=3)} {peer} {method} {path} {receipt.status}{finish}"
            f" {receipt.total_ms:.1f}ms {sent_bytes}B model={model or '-'} backend={receipt.backend or '-'}"
            f" {error}".rstrip()
        )

    def _render_json(
        self, now_s: float, receipt: Receipt, *, method: str, path: str, peer: str, sent_bytes: int
    ) -> str:
        """Render a line from parts: those that are alike in most lines are rendered once."""
        generation = SECRETS.generation
        is_short = len(path) + len(receipt.model) + len(receipt.served_model) <= MAX_KEPT_CHARACTERS
        render_call, render_route = (
            (_render_call_once, _render_route_once) if is_short else (_render_call, _render_route)
        )
        call = render_call(method, path, receipt.status, receipt.finish_label, generation)
        route = render_route(
            receipt.model, receipt.served_model, receipt.backend, receipt.endpoint, generation
        )
        prompt, completion = receipt.prompt_tokens, receipt.completion_tokens
        error = SECRETS.redact(receipt.error) if receipt.error else ""
        return (
            f'{{"event":"request","level":"info","ts":"{self._second(now_s)}","id":"{receipt.id}",'
            f'"peer":"{peer}",{call},'
            f'"ms":{receipt.total_ms:.2f},"bytes":{sent_bytes},'
            f'"stream":{"true" if receipt.streamed else "false"},'
            f'{route},"attempts":{len(receipt.attempts)},"upstream_ms":{receipt.upstream_ms:.2f},'
            f'"prompt_tokens":{"null" if prompt is None else prompt},'
            f'"completion_tokens":{"null" if completion is None else completion},'
            f'"tokens_from":"{receipt.tokens_from}",'
            f'"error":{jsons.dumps_text(error) if error else EMPTY}}}'
        )

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
