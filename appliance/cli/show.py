"""Answers for people and for programs: tables on a terminal, tab-separated lines elsewhere, JSON where asked for.

What comes over the wire is shown with its control characters taken out: a log line must not be able to steer a terminal.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from appliance.base import jsons

_KEPT = {"\n", "\t"}
Row = Sequence[str]


def clean(text: str) -> str:
    """Take control characters out, but for line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(char for char in text if char in _KEPT or (char >= " " and not "\x7f" <= char <= "\x9f"))


def as_object(message: Any) -> dict[str, Any]:
    """Give a message as a plain object, its fields named as in the .proto file, none left out but absent optional ones."""
    from google.protobuf import json_format

    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def word_of(message: Any, field: str) -> str:
    """Give an enum field's value as a word: APPLIANCE_STATE_SERVING → serving."""
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    names = [value.name for value in enum.values]
    prefix = names[0].removesuffix("UNSPECIFIED")
    found = enum.values_by_number.get(getattr(message, field))
    return str(found.name).removeprefix(prefix).lower() if found is not None else "unknown"


def time_of(stamp: Any) -> str:
    """Give a Timestamp as `2026-11-20 10:11:12Z`."""
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def duration(seconds: float) -> str:
    """Give seconds in the largest fitting units: 3d 4h, 5m 6s, 7.8s."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{seconds:.1f}s"


def given(message: Any, field: str, form: str | Callable[[Any], str] = "{}") -> str:
    """Give a field of a message as text, "" where it is absent."""
    if not message.HasField(field):
        return ""
    value = getattr(message, field)
    return form.format(value) if isinstance(form, str) else form(value)


def size(size_bytes: int) -> str:
    """Give bytes in the largest fitting unit: 5.6 GiB, 512 MiB, 0 B."""
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= one:
            return f"{size_bytes / one:.1f} {unit}" if unit == "GiB" else f"{size_bytes / one:.0f} {unit}"
    return f"{size_bytes} B"


class Screen:
    """Where answers go."""

    def __init__(self, *, is_json: bool = False, out: TextIO | None = None) -> None:
        self.is_json = is_json
        self.out = out or sys.stdout
        self.is_terminal = self.out.isatty()

    def say(self, text: str, *, end: str = "\n") -> None:
        """Write a text at once."""
        self.out.write(clean(text) + end)
        self.out.flush()

    def object(self, value: Any, *, is_one_of_many: bool = False) -> None:
        """Write one JSON value; those of a stream on one line each."""
        self.out.write((jsons.dumps_text(value) if is_one_of_many else jsons.dumps_pretty(value)) + "\n")
        self.out.flush()

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write names and values, those without a value left out."""
        kept = [(name, value) for name, value in rows if value]
        if not self.is_terminal:
            for name, value in kept:
                self.say(f"{name}\t{_one_line(value)}")
            return
        table = self._grid()
        for name, value in kept:
            table.add_row(_plain(name, "bold"), _plain(value))
        self._print(table)

    def table(self, headers: Row, rows: Iterable[Row]) -> None:
        """Write a table; without a terminal, tab-separated lines under a line of headers."""
        if not self.is_terminal:
            for row in [headers, *rows]:
                self.say("\t".join(_one_line(cell) for cell in row))
            return
        self._print(_table(headers, rows))

    @contextmanager
    def refreshing(self) -> Iterator[Callable[[Row, Iterable[Row]], None]]:
        """Give what writes a table again and again: in place on a terminal, elsewhere one after the other with an empty line between."""
        if not self.is_terminal:

            def append(headers: Row, rows: Iterable[Row]) -> None:
                self.table(headers, rows)
                self.say("")

            yield append
            return
        from rich.live import Live

        with Live(console=self._console(), auto_refresh=False) as live:
            yield lambda headers, rows: live.update(_table(headers, rows), refresh=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, float | None, str], None]]:
        """Give what tells how far something is, (what, percent or None, note): as a bar on a terminal, elsewhere on a line each."""
        if not self.is_terminal:

            def line(what: str, percent: float | None, note: str) -> None:
                self.say(
                    ", ".join(filter(None, (what if percent is None else f"{what} {percent:.0f}%", note)))
                )

            yield line
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        with Progress(*columns, console=self._console()) as bars:
            bar = bars.add_task("", total=100, note="")
            yield lambda what, percent, note: bars.update(
                bar, description=clean(what), completed=percent or 0, note=clean(note)
            )

    def _grid(self) -> Any:
        from rich.table import Table

        return Table.grid(padding=(0, 2))

    def _print(self, what: Any) -> None:
        self._console().print(what)

    def _console(self) -> Any:
        from rich.console import Console

        return Console(file=self.out, highlight=False, markup=False)


def _table(headers: Row, rows: Iterable[Row]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _plain(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(clean(text), style=style)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


# ---- what is shown of each answer


def status_pairs(status: Any) -> list[tuple[str, str]]:
    """Give the state of the appliance as names and values."""
    rows = [
        ("state", word_of(status, "state")),
        ("version", status.version),
        (
            "started",
            f"{time_of(status.started_at)} ({duration(status.uptime_s)} ago)"
            if status.HasField("started_at")
            else "",
        ),
        ("engine", status.engine),
        ("model", status.public_model),
        ("upstream model", "" if status.demo else status.upstream_base),
        ("in flight", str(status.in_flight)),
        ("gpu", gpu_text(status.gpu)),
        ("nat", _with_note(status.nat.outcome, status.nat.detail)),
        ("worker", worker_text(status.worker)),
        ("machine-id", status.machine_id),
    ]
    rows += [
        (f"backend {b.name}", ("up" if b.is_up else "down") + (f": {b.detail}" if b.detail else ""))
        for b in status.backends
    ]
    rows += [
        ("failed step", f"{step.name}: {step.detail} {step.remedy}".strip())
        for step in status.steps
        if step.outcome == "failed"
    ]
    return rows + [("warning", text) for text in status.warnings]


def status_line(status: Any) -> str:
    """Give the state on one line, for --watch."""
    words = [
        word_of(status, "state"),
        f"up {duration(status.uptime_s)}",
        f"{status.in_flight} in flight",
        f"worker {word_of(status.worker, 'state')}",
    ]
    if status.warnings:
        words.append(f"{len(status.warnings)} warning{'s' if len(status.warnings) > 1 else ''}")
    return ", ".join(words)


def gpu_text(gpu: Any) -> str:
    names = ", ".join(f"{card.name} {card.uuid}" for card in gpu.gpus)
    return names or _with_note(gpu.mode, gpu.reason)


def _with_note(word: str, note: str) -> str:
    return f"{word} ({note})" if note else word


def identity_pairs(identity: Any) -> list[tuple[str, str]]:
    """Give which machine this is as names and values."""
    rows = [
        ("machine-id", identity.machine_id),
        ("host name", identity.hostname),
        ("gpu mode", _with_note(identity.gpu.mode, identity.gpu.reason)),
    ]
    for card in identity.gpu.gpus:
        rows.append(
            (
                f"gpu {card.index}",
                f"{card.name}, {card.memory_total_mib} MiB, driver {card.driver}, {card.uuid}, {card.pci_bus_id}",
            )
        )
    return rows


def worker_text(worker: Any) -> str:
    """Give the worker in a few words."""
    return ": ".join(filter(None, (word_of(worker, "state"), worker.reason)))


def worker_pairs(worker: Any) -> list[tuple[str, str]]:
    """Give the worker as names and values."""
    return [
        ("state", word_of(worker, "state")),
        ("command", worker.command or "(none)"),
        ("pid", given(worker, "pid")),
        ("started", given(worker, "started_at", time_of)),
        ("restarts", str(worker.restarts)),
        ("last exit code", given(worker, "exit_code")),
        ("reason", worker.reason),
    ]


def backend_pairs(backend: Any) -> list[tuple[str, str]]:
    """Give all that is known of one backend as names and values."""
    return [
        ("name", backend.name),
        ("kind", backend.kind),
        ("state", backend.standing),
        ("note", backend.detail),
        ("url", backend.url),
        ("pool", backend.pool),
        ("models", ", ".join(backend.models)),
        ("in flight", str(backend.in_flight)),
        ("limit", given(backend, "limit", "{:g}")),
        ("running there", given(backend, "running", "{:g}")),
        ("waiting there", given(backend, "waiting", "{:g}")),
        ("weight", f"{backend.weight:g}"),
        ("context", str(backend.context_tokens or "")),
        ("chosen", str(backend.chosen_total)),
        ("mean time", given(backend, "mean_s", "{:.3f} s")),
        ("breaker", backend.breaker),
        ("comes from", backend.origin),
    ]


def backend_rows(backends: Iterable[Any]) -> list[Row]:
    """Give one row per endpoint, and one for a backend without any."""
    rows: list[Row] = []
    for b in backends:
        head = [
            b.name,
            b.kind,
            b.standing or ("up" if b.is_up else "down"),
            str(b.in_flight),
            ", ".join(b.models),
        ]
        rows += [[*head, e.url, _endpoint_text(e)] for e in b.endpoints] or [[*head, b.url, b.detail]]
    return rows


def _endpoint_text(endpoint: Any) -> str:
    rested = f"rested for {duration(endpoint.rested_s)}" if endpoint.rested_s else ""
    return "; ".join(filter(None, (rested, endpoint.last_error)))


def receipt_row(receipt: Any) -> Row:
    tokens = (
        f"{receipt.prompt_tokens}+{receipt.completion_tokens}" if receipt.HasField("prompt_tokens") else ""
    )
    return [
        time_of(receipt.at),
        receipt.id,
        receipt.route,
        receipt.model,
        str(receipt.status),
        receipt.finish,
        f"{receipt.total_ms:.0f}",
        tokens,
    ]


def receipt_pairs(receipt: Any) -> list[tuple[str, str]]:
    """Give one request's story as names and values."""
    rows = [
        ("id", receipt.id),
        ("at", time_of(receipt.at)),
        ("route", receipt.route),
        ("model", receipt.model),
        ("public model", receipt.public_model),
        ("served model", receipt.served_model),
        ("backend", receipt.backend),
        ("endpoint", receipt.endpoint),
        ("reason", receipt.reason),
        ("streamed", "yes" if receipt.streamed else "no"),
        ("queue ms", f"{receipt.queue_ms:.1f}"),
        ("upstream ms", f"{receipt.upstream_ms:.1f}"),
        ("total ms", f"{receipt.total_ms:.1f}"),
        ("prompt tokens", given(receipt, "prompt_tokens")),
        ("completion tokens", given(receipt, "completion_tokens")),
        ("finish", receipt.finish),
        ("status", str(receipt.status)),
        ("error", receipt.error),
    ]
    for number, attempt in enumerate(receipt.attempts, 1):
        status = given(attempt, "status", " {}")
        rows.append(
            (
                f"attempt {number}",
                f"{attempt.endpoint}: {attempt.outcome}{status}, {attempt.ms:.1f} ms {attempt.note}".strip(),
            )
        )
    return rows
