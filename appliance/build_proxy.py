"""Build the proxy of `POST /api/v1/gpu/proxy`. Imported where MARKET is on."""

from appliance.accounts.audit_log import Author, write_audit
from appliance.base.clock import Clock
from appliance.base.logs import get_logger
from appliance.base.ssrf import TargetPolicy
from appliance.base.tasks import Tasks
from appliance.market.proxy.sender import TargetSender
from appliance.market.proxy.service import GpuProxy, OwnInstances, ProxyNote
from appliance.settings import Settings
from appliance.storage.database import Database

log = get_logger("proxy")


class ProxyAudit:
    """Writes what was sent through the proxy into the audit, in the background.

    Args:
        database: Of accounts.
        clock: The time.
        tasks: What runs in the background.
    """

    def __init__(self, database: Database, clock: Clock, tasks: Tasks) -> None:
        self._database = database
        self._clock = clock
        self._tasks = tasks

    def note(self, note: ProxyNote) -> None:
        """Take what was done; a database that is down is logged."""
        self._tasks.start(self._write(note), name="proxy_audit")

    async def _write(self, note: ProxyNote) -> None:
        author = Author("user", note.caller.user_id, note.caller.peer)
        details = {"protocol": note.protocol, "status": note.status, "bytes": note.size_bytes}
        if note.error:
            details["error"] = note.error
        try:
            async with self._database.transaction() as transaction:
                await write_audit(
                    transaction,
                    self._clock,
                    author,
                    "proxy.request",
                    subject=("host", note.host),
                    details=details,
                )
        except Exception as error:
            log.warning("proxy_not_audited", error=repr(error), host=note.host)


def build_proxy(
    settings: Settings,
    database: Database,
    *,
    clock: Clock,
    tasks: Tasks,
    instances: OwnInstances | None = None,
) -> GpuProxy:
    """Build the proxy; close it at the end.

    Args:
        settings: GPU_PROXY_ALLOW, GPU_PROXY_ALLOW_PRIVATE, PROXY_MAX_S, and our own ports.
        database: Of accounts, for the audit.
        clock: The time.
        tasks: What runs in the background.
        instances: The instances that users rent; None = nothing is rented here.
    """
    own = settings.market
    policy = TargetPolicy.of(own.gpu_proxy_allow, own.gpu_proxy_allow_private, own_ports_of(settings))
    return GpuProxy(
        TargetSender(),
        policy,
        max_s=own.proxy_max_s,
        clock=clock,
        note=ProxyAudit(database, clock, tasks).note,
        instances=instances,
    )


def own_ports_of(settings: Settings) -> list[int]:
    """Return the ports on which this appliance listens."""
    front, control = settings.front, settings.control
    ports = (front.proxy_port, front.sidecar_port, control.control_port, control.grpc_port)
    return [port for port in (*ports, settings.models.status_port) if port]
