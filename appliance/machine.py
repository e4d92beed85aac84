"""The machine that the appliance runs on: the results of `prepare`, the worker's port, the worker."""

import asyncio
from contextlib import AsyncExitStack

from appliance.base.logs import get_logger
from appliance.front.server.server import HttpServer, listening
from appliance.host.nat.redirect import WORKER_PORT
from appliance.host.prepare import Prepared, load_or_prepare
from appliance.host.worker.worker import Worker
from appliance.parts import Appliance

log = get_logger("appliance")
PATIENCE_S = 2.0  # for the appliance's own /healthz
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to connect to a listener on all interfaces


async def open_machine(appliance: Appliance, server: HttpServer, stack: AsyncExitStack) -> None:
    """Read the results of `prepare`, or run it now; make the worker, not yet started."""
    settings = appliance.settings
    port = appliance.http_addresses[0][1]
    prepared = await asyncio.to_thread(
        load_or_prepare, settings.host, proxy_port=port, environ=settings.environ
    )
    appliance.prepared = prepared
    if prepared.needs_listener:
        await _open_worker_port(appliance, server, stack)
    _report(appliance, prepared)

    async def is_ready() -> bool:
        return await answers_health(*appliance.http_addresses[0])

    appliance.worker = Worker(
        settings.host,
        environ=settings.environ,
        is_gpu_simulated=bool(prepared.gpu.get("simulated")),
        is_ready=is_ready,
        lines=appliance.lines,
        clock=appliance.clock,
        metrics=appliance.metrics,
    )


async def start_worker(appliance: Appliance, worker: Worker) -> None:
    """Start the worker, and notify followers of the status of its changes."""
    await worker.start()
    appliance.tasks.start(_follow(worker, appliance), name="worker-status")


async def answers_health(host: str, port: int) -> bool:
    """Whether /healthz at this address answers 200, over a connection such as the worker's."""
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(LOOPBACK_OF.get(host, host), port), PATIENCE_S
        )
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in line


async def _open_worker_port(appliance: Appliance, server: HttpServer, stack: AsyncExitStack) -> None:
    """Listen on the worker's port: it replaces the NAT rule where that is not permitted."""
    try:
        await stack.enter_async_context(listening(server, [("127.0.0.1", WORKER_PORT)], settings=None))
        log.info("second_listener", address=f"127.0.0.1:{WORKER_PORT}")
    except OSError as exc:
        remedy = f"Only worker CLIs need port {WORKER_PORT}; where there is none, set NAT_REDIRECT=off."
        appliance.lifecycle.warnings.append(f"{exc.strerror} {remedy}")
        log.warning("second_listener_failed", reason=exc.strerror, remedy=remedy)


def _report(appliance: Appliance, prepared: Prepared) -> None:
    """Log and measure the results of `prepare`; warn of a simulated GPU."""
    warnings, metrics = appliance.lifecycle.warnings, appliance.metrics
    for step in prepared.steps:
        metrics.step_ok.labels(step.name).set(0 if step.outcome == "failed" else 1)
        if step.outcome == "failed":
            warnings.append(f"{step.name}: {step.detail}")
    gpu = prepared.gpu
    is_simulated = bool(gpu.get("simulated"))
    for row in gpu.get("gpus", []):
        labels = str(row["index"]), row["name"], row["uuid"], str(is_simulated).lower()
        metrics.gpu_info.labels(*labels).set(1)
    if is_simulated:
        warnings.append("The GPU that nvidia-smi reports here is simulated (GPU_MODE=simulated).")
        log.warning("simulated_gpu", names=[row["name"] for row in gpu["gpus"]])


async def _follow(worker: Worker, appliance: Appliance) -> None:
    async for _ in worker.status.follow():
        appliance.lifecycle.mark_changed()
