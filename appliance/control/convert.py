"""Between our objects and the messages of control.proto. Pure; unknown keys are left out, missing ones stay at their default."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar, cast

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from appliance.base.log_buffer import LogLine
from appliance.base.settings import Problem, SettingDescription
from appliance.control.parts import SettingChange
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.types import BackendState

EnumValue = TypeVar("EnumValue", bound=int)


def to_timestamp(at_s: float | None) -> timestamp_pb2.Timestamp | None:
    """Give seconds since 1970 as a Timestamp; None stays None."""
    if at_s is None:
        return None
    whole = int(at_s // 1)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=int((at_s - whole) * 1e9))


def to_appliance_state(word: str) -> pb.ApplianceState:
    """Return the enum value for the state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.ApplianceState, "APPLIANCE_STATE", word)


def to_worker_state(word: str) -> pb.WorkerState:
    """Return the enum value for the worker's state `word`; 0 for a word that the enum does not have."""
    return to_enum(pb.WorkerState, "WORKER_STATE", word)


def to_enum(enum: type[EnumValue], prefix: str, word: str) -> EnumValue:
    """Return the value PREFIX_WORD of a protobuf enum; 0 for a word that the enum does not have."""
    values = cast(EnumTypeWrapper, enum).DESCRIPTOR.values_by_name
    found = values.get(f"{prefix}_{word.upper()}")
    return cast(EnumValue, found.number if found is not None else 0)


def _picked(message: Any, values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Keep those of `names` that have a value; as text where the message wants one text."""
    fields = message.DESCRIPTOR.fields_by_name
    return {
        name: str(value)
        if fields[name].type == FieldDescriptor.TYPE_STRING and not isinstance(value, (list, tuple))
        else value
        for name in names
        if (value := values.get(name)) is not None
    }


def to_gpu(gpu: Mapping[str, Any]) -> pb.Gpu:
    """Give `{mode, simulated, gpus, reason}` as a message."""
    cards = [
        pb.GpuCard(
            **_picked(pb.GpuCard, row, "index", "name", "uuid", "pci_bus_id", "memory_total_mib", "driver")
        )
        for row in gpu.get("gpus", ())
    ]
    return pb.Gpu(gpus=cards, **_picked(pb.Gpu, gpu, "mode", "simulated", "reason"))


def to_worker(worker: Mapping[str, Any]) -> pb.Worker:
    """Give the worker's `as_dict` as a message."""
    return pb.Worker(
        state=to_worker_state(str(worker.get("state", ""))),
        started_at=to_timestamp(worker.get("started_at_s")),
        **_picked(pb.Worker, worker, "command", "pid", "restarts", "exit_code", "reason"),
    )


def to_status(status: Mapping[str, Any]) -> pb.Status:
    """Give the object of GET /healthz as a message."""
    return pb.Status(
        state=to_appliance_state(str(status.get("state", ""))),
        started_at=to_timestamp(status.get("started_at_s")),
        gpu=to_gpu(status.get("gpu") or {}),
        worker=to_worker(status.get("worker") or {"state": "off"}),
        nat=pb.Nat(**_picked(pb.Nat, status.get("nat") or {}, "outcome", "keeper", "detail")),
        steps=[
            pb.Step(**_picked(pb.Step, step, "name", "outcome", "detail", "remedy"))
            for step in status.get("steps", ())
        ],
        backends=[to_backend(row) for row in status.get("backends", ())],
        **_picked(
            pb.Status,
            status,
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
        ),
    )


def to_identity(identity: Mapping[str, Any]) -> pb.GetIdentityResponse:
    return pb.GetIdentityResponse(
        gpu=to_gpu(identity.get("gpu") or {}),
        **_picked(pb.GetIdentityResponse, identity, "machine_id", "hostname"),
    )


def to_backend(state: BackendState | Mapping[str, Any]) -> pb.Backend:
    """Give a backend's state as a message."""
    values = asdict(state) if isinstance(state, BackendState) else state
    endpoints = [
        pb.Endpoint(**_picked(pb.Endpoint, row, "url", "rested_s", "failed_in_a_row", "last_error"))
        for row in values.get("endpoints", ())
    ]
    return pb.Backend(
        endpoints=endpoints,
        **_picked(
            pb.Backend,
            values,
            "name",
            "kind",
            "is_up",
            "detail",
            "models",
            "in_flight",
            "url",
            "pool",
            "standing",
            "running",
            "waiting",
            "limit",
            "weight",
            "context_tokens",
            "chosen_total",
            "mean_s",
            "breaker",
            "origin",
        ),
    )


def to_setting(row: SettingDescription) -> pb.Setting:
    return pb.Setting(
        variable=row.variable,
        room=row.room,
        default_value=row.default,
        value=row.value,
        allowed=row.allowed,
        help=row.help,
        is_secret=row.is_secret,
        is_set=row.is_set,
        is_reloadable=row.is_reloadable,
    )


def to_change(change: SettingChange) -> pb.Change:
    return pb.Change(
        variable=change.variable,
        old_value=change.old,
        new_value=change.new,
        needs_restart=change.needs_restart,
    )


def to_problem(problem: Problem) -> pb.Problem:
    return pb.Problem(
        variable=problem.variable, value=problem.value, allowed=problem.allowed, remedy=problem.remedy
    )


def to_line(line: LogLine) -> pb.TailLogsResponse:
    return pb.TailLogsResponse(
        number=line.number, at=to_timestamp(line.at_s), source=line.source, text=sendable(line.text)
    )


def to_receipt(receipt: Receipt) -> pb.Receipt:
    """Give a receipt as a message; counts that nobody reported stay absent."""
    fields = (
        "id",
        "route",
        "model",
        "public_model",
        "served_model",
        "backend",
        "endpoint",
        "reason",
        "streamed",
        "queue_ms",
        "upstream_ms",
        "total_ms",
        "prompt_tokens",
        "completion_tokens",
        "finish",
        "error",
        "status",
    )
    values = {name: value for name in fields if (value := getattr(receipt, name)) is not None}
    values = {name: sendable(value) if isinstance(value, str) else value for name, value in values.items()}
    return pb.Receipt(
        at=to_timestamp(receipt.at_s), attempts=[_to_attempt(a) for a in receipt.attempts], **values
    )


def _to_attempt(attempt: Attempt) -> pb.Attempt:
    return pb.Attempt(
        endpoint=attempt.endpoint,
        outcome=attempt.outcome,
        status=attempt.status,
        ms=attempt.ms,
        note=sendable(attempt.note),
    )


def sendable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 and so protobuf cannot carry."""
    return text.encode("utf-8", "replace").decode()


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Give a Struct as a plain object. Its numbers are all doubles; whole ones become integers again."""
    return {name: _from_value(value) for name, value in struct.fields.items()}


def _from_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_from_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None
