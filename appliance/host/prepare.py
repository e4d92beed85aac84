"""Ready the machine: identity → gpu → shim → nat. As root in the container's entrypoint, or by `serve` itself elsewhere.

`prepare` leaves its results in a run-time file, so that `serve`, which has lost the privileges by then, knows them. A file of
another run (the container was restarted, the network is another) is not believed.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.host.gpu import GpuReport, find_gpus
from appliance.host.identity import ensure_machine_id
from appliance.host.nat.redirect import ensure_redirect
from appliance.host.settings import HostSettings
from appliance.host.smi.simulated import write_shim_state
from appliance.host.steps import StepResult

RUN_FILES = (Path("/run/appliance/prepare.json"),)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the steps came to. `needs_listener`: port 14444 is to be opened by the server."""

    steps: tuple[StepResult, ...]
    machine_id: str
    gpu: dict[str, Any] = field(default_factory=dict)
    nat: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_listener(self) -> bool:
        return bool(self.nat.get("outcome") == "listener")

    @property
    def failures(self) -> list[StepResult]:
        return [step for step in self.steps if step.outcome == "failed" and step.is_mandatory]


def prepare_machine(settings: HostSettings, *, proxy_port: int, environ: Mapping[str, str]) -> Prepared:
    """Do every step; one that failed does not keep the others from being tried."""
    machine = ensure_machine_id(settings.machine_id_path, settings.state_dir)
    steps = [
        StepResult(
            "machine-id",
            "done" if machine.is_kept else "skipped",
            machine.detail,
            ""
            if machine.is_kept
            else f"It will change at the next start: make {settings.state_dir} (STATE_DIR) writable.",
        )
    ]
    gpu = find_gpus(settings, environ)
    steps.append(_gpu_step(gpu))
    path = write_shim_state({**environ, "STATE_DIR": str(settings.state_dir)}, gpu.mode)
    steps.append(
        StepResult(
            "shim",
            "done" if path else "skipped",
            f"nvidia-smi answers for: {gpu.mode}"
            + ("" if path else " (no folder to leave that in; the shim goes by its environment)"),
        )
    )
    nat = ensure_redirect(settings.nat_redirect, port_to=proxy_port, forwarded=settings.nat_forwarded)
    outcome = {"rule": "done", "listener": "done", "off": "skipped", "failed": "failed"}[nat.outcome]
    steps.append(StepResult("nat", outcome, nat.detail, nat.remedy, is_mandatory=nat.outcome == "failed"))  # type: ignore[arg-type]
    return Prepared(tuple(steps), machine.value, gpu.as_dict(), nat.as_dict())


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
    """Do every step, say what each came to, and leave the results for `serve`."""
    prepared = prepare_machine(settings, proxy_port=proxy_port, environ=environ)
    for step in prepared.steps:
        print(f"prepare: {step}", file=sys.stderr)  # noqa: T201 - the entrypoint's own words
    _leave(prepared, settings, proxy_port)
    return list(prepared.steps)


def prepared_or_now(settings: HostSettings, *, proxy_port: int, environ: Mapping[str, str]) -> Prepared:
    """Give what `prepare` left in this run, or do the steps now.

    A machine-id that root could not keep (it may not write the service user's state folder) is kept now.
    """
    left = _read(settings, proxy_port)
    if left is None:
        return prepare_machine(settings, proxy_port=proxy_port, environ=environ)
    machine = ensure_machine_id(settings.machine_id_path, settings.state_dir)
    if machine.value == left.machine_id and machine.is_kept:
        steps = (StepResult("machine-id", "done", machine.detail), *left.steps[1:])
        return Prepared(steps, machine.value, left.gpu, left.nat)
    return Prepared(left.steps, machine.value, left.gpu, left.nat)


def run_marker() -> str:
    """Give what tells this run from another: the start of the namespace's first process, and the network namespace."""
    try:
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
        return f"{started}:{os.readlink('/proc/self/ns/net')}"
    except (OSError, IndexError):
        return ""


def _files(settings: HostSettings) -> list[Path]:
    return [*RUN_FILES, settings.state_dir / "run" / "prepare.json"]


def _leave(prepared: Prepared, settings: HostSettings, proxy_port: int) -> None:
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
