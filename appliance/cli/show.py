"""Messages as people read them: tables on a terminal, plain lines in a pipe, JSON when asked."""

import json
import sys
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from appliance.control.v1 import control_pb2 as pb

console = Console(highlight=False, soft_wrap=True)


def as_json(message: Any) -> None:
    """Print a message as JSON, under the protocol's own names."""
    value = json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: TID251 - people and jq read it


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Print rows: a table on a terminal, tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn, markup=False)


def status(message: Any) -> None:
    """Print a status: what it is first, what is wrong with it last."""
    state = pb.ApplianceState.Name(message.state).removeprefix("APPLIANCE_STATE_").lower()
    worker = pb.WorkerState.Name(message.worker.state).removeprefix("WORKER_STATE_").lower()
    gpu = ", ".join(d.name for d in message.gpu.gpus) or f"none ({message.gpu.reason})"
    rows = [["state", state], ["version", message.version], ["up", f"{message.uptime_s:.0f} s"], ["engine", message.engine],
            ["model", message.public_model], ["upstream", message.upstream_base], ["gpu", gpu], ["port 14444", message.nat.detail],
            ["worker", f"{worker} {message.worker.reason}".strip()], ["machine-id", message.machine_id],
            ["in flight", str(message.in_flight)]]
    table(["", ""], rows + [["warning", text] for text in message.warnings])


def settings(message: Any) -> None:
    table(["variable", "value", "default", "room"], [[s.variable, s.value, s.default_value, s.room] for s in message.settings])


def reload(message: Any) -> None:
    table(["variable", "old", "new", ""],
          [[c.variable, c.old_value or "(empty)", c.new_value or "(empty)", "needs a restart" if c.needs_restart else ""] for c in message.changes])
    for problem in message.problems:
        print(f"problem: {problem.variable}: allowed: {problem.allowed}. {problem.remedy}", file=sys.stderr)
    print(message.message)


def backends(message: Any) -> None:
    rows = []
    for b in message.backends:
        rows.append([b.name, b.kind, "up" if b.is_up else "down", str(b.in_flight), b.detail])
        rows += [["", "", "rested" if e.rested_s else "in use", "", f"{e.url} {e.last_error}".strip()] for e in b.endpoints]
    table(["backend", "kind", "state", "in flight", "detail"], rows)


def receipts(message: Any) -> None:
    table(["id", "route", "status", "ms", "backend", "model", "finish"],
          [[r.id, r.route, str(r.status), f"{r.total_ms:.1f}", r.backend, r.model, r.finish] for r in message.receipts])
