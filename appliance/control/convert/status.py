"""Status, identity, worker, settings and lines of the log as messages.

Unknown keys are left out; missing ones stay default.
"""

from collections.abc import Mapping
from typing import Any

from appliance.base.log_buffer import LogLine
from appliance.base.settings import Problem, SettingDescription
from appliance.control.convert.backends import to_backend
from appliance.control.convert.values import pick_fields, to_enum, to_sendable, to_timestamp
from appliance.control.parts import SettingChange
from appliance.control.v1 import control_pb2 as pb

STATUS_FIELDS = (
    "ok",
    "version",
    "uptime_s",
    "demo",
    "engine",
    "public_model",
    "upstream_base",
    "aliases",
    "novita_endpoints",
    "machine_id",
    "in_flight",
    "warnings",
)
CARD_FIELDS = ("index", "name", "uuid", "pci_bus_id", "memory_total_mib", "driver")


def to_appliance_state(word: str) -> pb.ApplianceState:
    """Return the enum value for the state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.ApplianceState, "APPLIANCE_STATE", word)


def to_worker_state(word: str) -> pb.WorkerState:
    """Return the enum value for the worker's state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.WorkerState, "WORKER_STATE", word)


def to_gpu(gpu: Mapping[str, Any]) -> pb.Gpu:
    """Return `{mode, simulated, gpus, reason}` as a message."""
    cards = [pb.GpuCard(**pick_fields(pb.GpuCard, row, *CARD_FIELDS)) for row in gpu.get("gpus", ())]
    mode = to_enum(pb.GpuMode, "GPU_MODE", str(gpu.get("mode", "")))
    return pb.Gpu(gpus=cards, mode_kind=mode, **pick_fields(pb.Gpu, gpu, "mode", "simulated", "reason"))


def to_nat(nat: Mapping[str, Any]) -> pb.Nat:
    """Return what became of the redirect of port 14444 as a message."""
    outcome = to_enum(pb.NatOutcome, "NAT_OUTCOME", str(nat.get("outcome", "")))
    return pb.Nat(outcome_kind=outcome, **pick_fields(pb.Nat, nat, "outcome", "keeper", "detail"))


def to_step(step: Mapping[str, Any]) -> pb.Step:
    """Return `{name, outcome, detail, remedy}` as a message."""
    outcome = to_enum(pb.StepOutcome, "STEP_OUTCOME", str(step.get("outcome", "")))
    return pb.Step(outcome_kind=outcome, **pick_fields(pb.Step, step, "name", "outcome", "detail", "remedy"))


def to_worker(worker: Mapping[str, Any]) -> pb.Worker:
    """Return the worker's `as_dict` as a message."""
    return pb.Worker(
        state=to_worker_state(str(worker.get("state", ""))),
        started_at=to_timestamp(worker.get("started_at_s")),
        **pick_fields(pb.Worker, worker, "command", "pid", "restarts", "exit_code", "reason"),
    )


def to_status(status: Mapping[str, Any]) -> pb.Status:
    """Return the object of GET /healthz as a message."""
    return pb.Status(
        state=to_appliance_state(str(status.get("state", ""))),
        started_at=to_timestamp(status.get("started_at_s")),
        gpu=to_gpu(status.get("gpu") or {}),
        worker=to_worker(status.get("worker") or {"state": "off"}),
        nat=to_nat(status.get("nat") or {}),
        steps=[to_step(step) for step in status.get("steps", ())],
        backends=[to_backend(row) for row in status.get("backends", ())],
        **pick_fields(pb.Status, status, *STATUS_FIELDS),
    )


def to_identity(identity: Mapping[str, Any]) -> pb.GetIdentityResponse:
    """Return `{machine_id, hostname, gpu}` as a message."""
    return pb.GetIdentityResponse(
        gpu=to_gpu(identity.get("gpu") or {}),
        **pick_fields(pb.GetIdentityResponse, identity, "machine_id", "hostname"),
    )


def to_setting(row: SettingDescription) -> pb.Setting:
    """Return the description of one setting as a message."""
    return pb.Setting(
        variable=row.variable,
        room=row.package,
        default_value=row.default,
        value=row.value,
        allowed=row.allowed,
        help=row.help,
        is_secret=row.is_secret,
        is_set=row.is_set,
        is_reloadable=row.is_reloadable,
    )


def to_change(change: SettingChange) -> pb.Change:
    """Return one setting whose value differs as a message."""
    return pb.Change(
        variable=change.variable,
        old_value=change.old,
        new_value=change.new,
        needs_restart=change.needs_restart,
    )


def to_problem(problem: Problem) -> pb.Problem:
    """Return one problem of the settings as a message."""
    return pb.Problem(
        variable=problem.variable, value=problem.value, allowed=problem.allowed, remedy=problem.remedy
    )


def to_line(line: LogLine) -> pb.TailLogsResponse:
    """Return one line of the log as a message."""
    return pb.TailLogsResponse(
        number=line.number, at=to_timestamp(line.at_s), source=line.source, text=to_sendable(line.text)
    )
