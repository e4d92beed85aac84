"""Our objects into messages. Pure."""

from dataclasses import asdict
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.base import jsons
from appliance.base.lines import Line
from appliance.base.settings import Described
from appliance.control.parts import ReloadResult
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt
from appliance.engines.types import BackendState


def timestamp(at_s: float) -> Timestamp:
    """Seconds since 1970 as the protocol has them."""
    return Timestamp(seconds=int(at_s), nanos=int(at_s % 1 * 1e9))


def gpu(value: dict[str, Any]) -> pb.Gpu:
    return pb.Gpu(mode=value.get("mode", ""), simulated=bool(value.get("simulated")), reason=value.get("reason", ""),
                  gpus=[pb.GpuCard(**row) for row in value.get("gpus", [])])


def worker(value: dict[str, Any]) -> pb.Worker:
    """`value`: Worker.as_dict()."""
    state = pb.WorkerState.Value(f"WORKER_STATE_{value['state'].upper()}")
    started = value.get("started_at_s")
    return pb.Worker(state=state, command=value.get("command", ""), pid=value.get("pid"), restarts=value.get("restarts", 0),
                     exit_code=value.get("exit_code"), reason=value.get("reason", ""),
                     started_at=timestamp(started) if started is not None else None)


def status(value: dict[str, Any], backends: list[BackendState]) -> pb.Status:
    """`value`: the object of /healthz."""
    nat = value.get("nat") or {}
    return pb.Status(
        ok=value["ok"], state=pb.ApplianceState.Value(f"APPLIANCE_STATE_{value['state'].upper()}"), version=value["version"],
        started_at=timestamp(value["started_at_s"]), uptime_s=value["uptime_s"], demo=value["demo"], engine=value["engine"],
        public_model=value["public_model"], upstream_base=value["upstream_base"], aliases=value["aliases"],
        novita_endpoints=value["novita_endpoints"], gpu=gpu(value.get("gpu") or {}),
        nat=pb.Nat(outcome=nat.get("outcome", ""), keeper=nat.get("keeper", ""), detail=nat.get("detail", "")),
        worker=worker(value.get("worker") or {"state": "off"}), machine_id=value.get("machine_id", ""),
        steps=[pb.Step(name=s["name"], outcome=s["outcome"], detail=s["detail"], remedy=s.get("remedy", "")) for s in value.get("steps", [])],
        in_flight=value["in_flight"], warnings=value["warnings"], backends=[backend(state) for state in backends])


def identity(value: dict[str, Any]) -> pb.GetIdentityResponse:
    return pb.GetIdentityResponse(machine_id=value.get("machine_id", ""), hostname=value.get("hostname", ""), gpu=gpu(value.get("gpu") or {}))


def setting(row: Described) -> pb.Setting:
    fields = asdict(row)
    return pb.Setting(default_value=fields.pop("default"), **fields)


def reload_result(result: ReloadResult) -> pb.ReloadResponse:
    return pb.ReloadResponse(
        changes=[pb.Change(variable=c.variable, old_value=c.old, new_value=c.new, needs_restart=c.needs_restart) for c in result.changes],
        problems=[pb.Problem(variable=p.variable, value=p.value, allowed=p.allowed, remedy=p.remedy) for p in result.problems],
        applied=result.applied, message=result.message)


def line(value: Line) -> pb.TailLogsResponse:
    return pb.TailLogsResponse(number=value.number, at=timestamp(value.at_s), source=value.source, text=value.text)


def backend(state: BackendState) -> pb.Backend:
    return pb.Backend(name=state.name, kind=state.kind, is_up=state.is_up, detail=state.detail, models=state.models,
                      in_flight=state.in_flight, endpoints=[pb.Endpoint(**row) for row in state.endpoints])


def receipt(value: Receipt) -> pb.Receipt:
    fields = {k: v for k, v in asdict(value).items() if v is not None and k not in {"attempts", "at_s"}}
    attempts = [pb.Attempt(**{k: v for k, v in asdict(a).items() if v is not None}) for a in value.attempts]
    return pb.Receipt(**fields, at=timestamp(value.at_s), attempts=attempts)


def reply(value: dict[str, Any]) -> pb.ChatResponse:
    """Give the message for a whole chat completion."""
    choice = (value.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    return pb.ChatResponse(reply=pb.ChatReply(
        text=message.get("content") or "", reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        finish_reason=choice.get("finish_reason") or "", openai_json=jsons.dumps(value)))


def deltas(piece: bytes) -> list[pb.ChatResponse]:
    """Give the messages of some whole SSE events, one per chunk; comments and [DONE] give none."""
    found = []
    for event in piece.split(b"\n\n"):
        data = event.removeprefix(b"data:").strip()
        if not event.startswith(b"data:") or data == b"[DONE]":
            continue
        choice = (jsons.loads(data).get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        found.append(pb.ChatResponse(delta=pb.ChatDelta(
            index=choice.get("index") or 0, text=delta.get("content") or "",
            reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
            finish_reason=choice.get("finish_reason") or "", openai_json=data)))
    return found
