"""Prepare the machine: machine-id, GPU, nvidia-smi shim, NAT.

Run as root by the container's entrypoint, or by `serve` itself elsewhere. `prepare` leaves its results in a
run-time file for `serve`, which has lost the privileges by then. A file of another run is ignored: the
container was restarted, or its network is another one.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base.errors import WRITE_REMEDIES, write_remedy
from appliance.host.gpu import GpuReport, find_gpus
from appliance.host.identity import MachineId, ensure_machine_id
from appliance.host.nat.redirect import ensure_redirect
from appliance.host.settings import HostSettings
from appliance.host.smi.simulated import write_shim_state
from appliance.host.steps import Outcome, StepResult

RUN_FILES = (Path("/run/appliance/prepare.json"),)
NAT_OUTCOMES: dict[str, Outcome] = {
    "rule": "done",
    "listener": "done",
    "off": "skipped",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The results of the steps.

    Attributes:
        steps: In order.
        machine_id: 32 hex digits.
        gpu: See `GpuReport.as_dict`.
        nat: See `NatResult.as_dict`.
    """

    steps: tuple[StepResult, ...]
    machine_id: str
    gpu: dict[str, Any] = field(default_factory=dict)
    nat: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_listener(self) -> bool:
        """Whether the server must listen on port 14444 itself."""
        return bool(self.nat.get("outcome") == "listener")

    @property
    def failures(self) -> list[StepResult]:
        """Failed steps without which the server must not start."""
        return [step for step in self.steps if step.outcome == "failed" and step.is_mandatory]


def prepare_machine(settings: HostSettings, *, proxy_port: int, environ: Mapping[str, str]) -> Prepared:
    """Run every step, also after one that failed.

    Args:
        settings: The package's settings.
        proxy_port: PROXY_PORT, where port 14444 is redirected to.
        environ: The variables of the simulated GPU.
    """
    machine = ensure_machine_id(settings.machine_id_path, settings.state_dir)
    gpu = find_gpus(settings, environ)
    shim_file = write_shim_state({**environ, "STATE_DIR": str(settings.state_dir)}, gpu.mode)
    nat = ensure_redirect(settings.nat_redirect, port_to=proxy_port, forwarded=settings.nat_forwarded)
    steps = (
        _identity_step(machine, settings.state_dir),
        _gpu_step(gpu),
        _shim_step(gpu, shim_file),
        StepResult("nat", NAT_OUTCOMES[nat.outcome], nat.detail, nat.remedy, nat.outcome == "failed"),
    )
    return Prepared(steps, machine.value, gpu.as_dict(), nat.as_dict())


def _identity_step(machine: MachineId, state_dir: Path) -> StepResult:
    if machine.is_kept:
        return StepResult("machine-id", "done", machine.detail)
    remedy = f"It will change at the next start: make {state_dir} (STATE_DIR) writable."
    if machine.failure is not None and machine.failure.errno in WRITE_REMEDIES:
        why = write_remedy(machine.failure)
        remedy = f"It will change at the next start. {why} STATE_DIR is {state_dir}."
    return StepResult("machine-id", "skipped", machine.detail, remedy)


def _shim_step(gpu: GpuReport, shim_file: str) -> StepResult:
    detail = f"nvidia-smi responds for: {gpu.mode}"
    if shim_file:
        return StepResult("shim", "done", detail)
    return StepResult(
        "shim", "skipped", f"{detail} (no writable folder for this; the shim uses its environment)"
    )


def _gpu_step(gpu: GpuReport) -> StepResult:
    if not gpu.is_satisfied:
        return StepResult(
            "gpu",
            "failed",
            gpu.reason,
            "Give the container a GPU (--gpus all), or set GPU_MODE=auto.",
            is_mandatory=True,
        )
    return StepResult("gpu", "done" if gpu.gpus else "skipped", gpu.reason)


def run_prepare(settings: HostSettings, *, proxy_port: int, environ: Mapping[str, str]) -> list[StepResult]:
    """Run every step, print the results, and save them for `serve`."""
    prepared = prepare_machine(settings, proxy_port=proxy_port, environ=environ)
    for step in prepared.steps:
        print(f"prepare: {step}", file=sys.stderr)  # noqa: T201 - the entrypoint's own output
    _save(prepared, settings, proxy_port)
    return list(prepared.steps)


def load_or_prepare(settings: HostSettings, *, proxy_port: int, environ: Mapping[str, str]) -> Prepared:
    """Return what `prepare` saved in this run, or run the steps now.

    A machine-id that root could not save (it has no access to the service user's state folder) is saved now.
    """
    saved = _read(settings, proxy_port)
    if saved is None:
        return prepare_machine(settings, proxy_port=proxy_port, environ=environ)
    machine = ensure_machine_id(settings.machine_id_path, settings.state_dir)
    if machine.value == saved.machine_id and machine.is_kept:
        steps = (StepResult("machine-id", "done", machine.detail), *saved.steps[1:])
        return Prepared(steps, machine.value, saved.gpu, saved.nat)
    return Prepared(saved.steps, machine.value, saved.gpu, saved.nat)


def run_marker() -> str:
    """Return what identifies this run: the start of the first process, and the network namespace."""
    try:
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
        return f"{started}:{os.readlink('/proc/self/ns/net')}"
    except (OSError, IndexError):
        return ""


def _files(settings: HostSettings) -> list[Path]:
    return [*RUN_FILES, settings.state_dir / "run" / "prepare.json"]


def _save(prepared: Prepared, settings: HostSettings, proxy_port: int) -> None:
    text = json.dumps(  # noqa: TID251 - read by the shim, too
        {
            "run": run_marker(),
            "port": proxy_port,
            "machine_id": prepared.machine_id,
            "gpu": prepared.gpu,
            "nat": prepared.nat,
            "steps": [step.as_dict() for step in prepared.steps],
        }
    )
    for path in _files(settings):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o644)
        except OSError:
            continue
        return


def _read(settings: HostSettings, proxy_port: int) -> Prepared | None:
    marker = run_marker()
    for path in _files(settings):
        try:
            value = json.loads(path.read_text())
            if (
                path.stat().st_uid not in {0, os.getuid()}
                or not marker
                or value["run"] != marker
                or value["port"] != proxy_port
            ):
                continue
            return Prepared(
                tuple(StepResult(**row) for row in value["steps"]),
                value["machine_id"],
                value["gpu"],
                value["nat"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
