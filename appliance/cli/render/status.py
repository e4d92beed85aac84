"""Status, identity and worker as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.cli.render.values import Pairs, duration, enum_word, optional, plural, timestamp, with_note

if TYPE_CHECKING:
    from appliance.cli import messages as pb


def status_pairs(status: pb.Status) -> Pairs:
    """Return the status of the appliance as names and values."""
    started = (
        f"{timestamp(status.started_at)} ({duration(status.uptime_s)} ago)"
        if status.HasField("started_at")
        else ""
    )
    rows = [
        ("state", enum_word(status, "state")),
        ("version", status.version),
        ("started", started),
        ("engine", status.engine),
        ("model", status.public_model),
        ("upstream model", "" if status.demo else status.upstream_base),
        ("in flight", str(status.in_flight)),
        ("gpu", gpu_text(status.gpu)),
        ("nat", with_note(status.nat.outcome, status.nat.detail)),
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


def status_line(status: pb.Status) -> str:
    """Return the status on one line, for --watch."""
    words = [
        enum_word(status, "state"),
        f"up {duration(status.uptime_s)}",
        f"{status.in_flight} in flight",
        f"worker {enum_word(status.worker, 'state')}",
    ]
    if status.warnings:
        words.append(plural(len(status.warnings), "warning"))
    return ", ".join(words)


def gpu_text(gpu: pb.Gpu) -> str:
    """Return the GPUs' names, or why there are none."""
    names = ", ".join(f"{card.name} {card.uuid}" for card in gpu.gpus)
    return names or with_note(gpu.mode, gpu.reason)


def identity_pairs(identity: pb.GetIdentityResponse) -> Pairs:
    """Return which machine this is as names and values."""
    rows = [
        ("machine-id", identity.machine_id),
        ("host name", identity.hostname),
        ("gpu mode", with_note(identity.gpu.mode, identity.gpu.reason)),
    ]
    for card in identity.gpu.gpus:
        memory, driver = f"{card.memory_total_mib} MiB", f"driver {card.driver}"
        rows.append((f"gpu {card.index}", ", ".join((card.name, memory, driver, card.uuid, card.pci_bus_id))))
    return rows


def worker_text(worker: pb.Worker) -> str:
    """Return the worker in a few words."""
    return ": ".join(filter(None, (enum_word(worker, "state"), worker.reason)))


def worker_pairs(worker: pb.Worker) -> Pairs:
    """Return the worker as names and values."""
    return [
        ("state", enum_word(worker, "state")),
        ("command", worker.command or "(none)"),
        ("pid", optional(worker, "pid")),
        ("started", optional(worker, "started_at", timestamp)),
        ("restarts", str(worker.restarts)),
        ("last exit code", optional(worker, "exit_code")),
        ("reason", worker.reason),
    ]
