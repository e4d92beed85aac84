"""Our objects into messages. Pure."""

from dataclasses import asdict
from typing import Any

from appliance.base.lines import Line
from appliance.base.settings import Described
from appliance.control.parts import ReloadResult
from appliance.control.v1 import control_pb2 as pb
from appliance.engines.receipts import Receipt
from appliance.engines.types import BackendState


def gpu(value: dict[str, Any]) -> pb.Gpu:
    return pb.Gpu(asked=value.get("asked", ""), mode=value.get("mode", ""), simulated=bool(value.get("simulated")),
                  reason=value.get("reason", ""), devices=[pb.GpuDevice(**row) for row in value.get("gpus", [])])


def worker(value: dict[str, Any]) -> pb.WorkerState:
    return pb.WorkerState(**{k: v for k, v in value.items() if v is not None})


def status(value: dict[str, Any]) -> pb.Status:
    nat = value.get("nat") or {}
    return pb.Status(
        ok=value["ok"], state=value["state"], version=value["version"], started_at_s=value["started_at_s"], uptime_s=value["uptime_s"],
        demo=value["demo"], engine=value["engine"], public_model=value["public_model"], upstream_base=value["upstream_base"],
        aliases=value["aliases"], novita_endpoints=value["novita_endpoints"], gpu=gpu(value.get("gpu") or {}),
        nat=pb.Nat(outcome=nat.get("outcome", ""), keeper=nat.get("keeper", ""), detail=nat.get("detail", "")),
        worker=worker(value.get("worker") or {"state": "off"}), machine_id=value.get("machine_id", ""),
        steps=[pb.Step(name=s["name"], outcome=s["outcome"], detail=s["detail"], remedy=s.get("remedy", "")) for s in value.get("steps", [])],
        in_flight=value["in_flight"], warnings=value["warnings"])


def identity(value: dict[str, Any]) -> pb.Identity:
    return pb.Identity(machine_id=value.get("machine_id", ""), hostname=value.get("hostname", ""), gpu=gpu(value.get("gpu") or {}))


def setting(row: Described) -> pb.Setting:
    return pb.Setting(**asdict(row))


def reload_result(result: ReloadResult) -> pb.ReloadResponse:
    return pb.ReloadResponse(
        changes=[pb.Change(**asdict(change)) for change in result.changes],
        problems=[pb.Problem(variable=p.variable, value=p.value, allowed=p.allowed, remedy=p.remedy) for p in result.problems],
        applied=result.applied, message=result.message)


def line(value: Line) -> pb.LogLine:
    return pb.LogLine(number=value.number, at_s=value.at_s, source=value.source, text=value.text)


def backend(state: BackendState) -> pb.Backend:
    return pb.Backend(name=state.name, kind=state.kind, is_up=state.is_up, detail=state.detail, models=state.models,
                      in_flight=state.in_flight, endpoints=[pb.Endpoint(**row) for row in state.endpoints])


def receipt(value: Receipt) -> pb.Receipt:
    fields = {k: v for k, v in value.as_dict().items() if v is not None and k != "attempts"}
    attempts = [pb.Attempt(**{k: v for k, v in asdict(a).items() if v is not None}) for a in value.attempts]
    return pb.Receipt(**fields, attempts=attempts)
