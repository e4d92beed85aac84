"""Which backends there are: brought in line with the settings and the file at start and at each reload, and changed at run time.

A server that stays keeps everything that is known of it. What was changed at run time is gone at a restart unless it was asked
to persist; then it lies in one file of the state folder and is laid over the configuration again.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base import jsons
from appliance.base.balancing import STRATEGIES, align_total
from appliance.base.clock import Clock
from appliance.base.errors import Conflict, NotFound
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Timeouts
from appliance.engines.aliases import Names
from appliance.engines.backends.contract import Backend
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.backends.hosted import HostedBackend
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.prober import HealthProber
from appliance.engines.backends.server import EngineServer
from appliance.engines.persistence import keep
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import DEFAULT_POOL, HOSTED_POOL, BackendSpec, FleetSpec, Tls, parse_backend

log = get_logger("fleet")
PATIENCE_S = 3600  # running answers of a backend that goes get this long
FIRST_LOOKS_S = 2.0
FALLBACK_STRATEGY = "round_robin"  # for unknown names at start, as system B has it


@dataclass
class RuntimeChanges:
    """What was changed at run time, and is to survive a restart. Keys of servers are in it: the file is the owner's alone."""

    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    strategies: dict[str, str] = field(default_factory=dict)  # by pool; "" = all

    @classmethod
    def read(cls, path: Path) -> "RuntimeChanges":
        """Read them; a file that is missing is empty, one that cannot be read is reported and left as it is."""
        try:
            value = jsons.loads(path.read_bytes())
            return cls(
                dict(value["added"]),
                list(value["removed"]),
                list(value["drained"]),
                dict(value["strategies"]),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, jsons.InvalidJson, KeyError, TypeError, ValueError) as exc:
            log.error("changes_unreadable", path=str(path), error=repr(exc))
            return cls()

    def write(self, path: Path) -> None:
        """Write them, whole or not at all.

        Raises  Conflict: the folder cannot be written
        """
        keep(
            path,
            {
                "added": self.added,
                "removed": self.removed,
                "drained": self.drained,
                "strategies": self.strategies,
            },
        )


class Fleet:
    """Owns the servers, the hosted backend and the demo engine, and puts them into the router's pools."""

    def __init__(
        self,
        router: Router,
        *,
        tasks: Tasks,
        clock: Clock,
        metrics: Metrics,
        changes_path: Path | None = None,
    ) -> None:
        self.router = router
        self._tasks = tasks
        self._clock = clock
        self._metrics = metrics
        self._path = changes_path
        self._changes = RuntimeChanges.read(changes_path) if changes_path else RuntimeChanges()
        self._spec = FleetSpec()
        self._servers: dict[str, EngineServer] = {}
        self._loops: dict[str, tuple[HealthProber, asyncio.Task[Any]]] = {}
        self._hosted: HostedBackend | None = None
        self._managed: ManagedBackend | None = None
        self._hosted_from: EngineSettings | None = None
        self._wire: ConnectionPool | None = None
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._strategies: dict[str, str] = dict(self._changes.strategies)
        self._runtime: set[str] = set()  # added while running
        self._removed: set[str] = set(self._changes.removed)
        self._drained: set[str] = set(self._changes.drained)

    # ---- in line with the configuration

    def apply(
        self, settings: EngineSettings, spec: FleetSpec, environ: Mapping[str, str] | None = None
    ) -> list[str]:
        """Bring the backends in line with `spec`, and with what was changed at run time.

        Gives   what differs, one sentence each
        """
        former = self.router.settings
        wanted = {b.name: (b, "configured") for b in spec.backends if b.name not in self._removed}
        for name, value in self._changes.added.items():
            try:
                wanted.setdefault(name, (parse_backend(value, environ or os.environ), "persisted"))
            except Exception as exc:
                log.error("persisted_backend_unusable", backend=name, error=str(exc))
        for name in self._runtime:
            if name in self._servers:
                wanted.setdefault(name, (self._servers[name].spec, "runtime"))
        differences = []
        for name in [name for name in self._servers if name not in wanted]:
            differences.append(f"the backend {name} goes")
            self._drop(name)
        for name, (one, origin) in wanted.items():
            present = self._servers.get(name)
            if present is not None and present.spec == one:
                present.apply(settings, origin)
                continue
            differences.append(f"the backend {name} {'changes' if present else 'comes'}")
            if present is not None:
                self._drop(name)
            self._open(one, settings, origin)
        for name in self._drained & set(self._servers):
            self._servers[name].state.is_draining = True
        self._spec = spec
        if self._hosted_from is None or settings != self._hosted_from:
            self._replace_hosted(settings)
        if former.lb_strategy != settings.lb_strategy:
            self._strategies = dict(self._changes.strategies)  # the operator's newer word
        self.router.apply(settings)
        self._put()
        return differences

    def describe_changes(self, spec: FleetSpec) -> list[str]:
        """Tell what `apply` would change, one sentence each."""
        wanted = {b.name: b for b in spec.backends if b.name not in self._removed}
        kept = set(self._changes.added) | self._runtime
        rows = [
            f"the backend {name} goes" for name in self._servers if name not in wanted and name not in kept
        ]
        rows += [
            f"the backend {name} {'changes' if name in self._servers else 'comes'}"
            for name, one in wanted.items()
            if name not in self._servers or (self._servers[name].spec != one and name not in kept)
        ]
        former = {pool.name: pool for pool in self._spec.pools}
        rows += [f"the pool {pool.name} changes" for pool in spec.pools if former.get(pool.name) != pool]
        rows += [f"the pool {name} goes" for name in former if name not in {pool.name for pool in spec.pools}]
        return rows

    def set_managed(self, backend: ManagedBackend) -> None:
        """Put the model manager's backend in place: the table's models are looked for before everything else."""
        self._managed = backend
        self._put()

    def refresh_managed(self, settings: EngineSettings) -> None:
        """The table of models, or how requests are sent, changed."""
        if self._managed is not None:
            self._managed.apply(settings)
            self._put()  # it may have its first model now, or none any more

    async def wait_first_probes(self) -> None:
        """Wait until every server was looked at once, but not for long: one that hangs must not hold up the others."""
        probers = [prober for prober, _ in self._loops.values()]
        if probers:
            try:
                await asyncio.wait_for(
                    asyncio.gather(*(prober.wait_first_probe() for prober in probers)), FIRST_LOOKS_S
                )
            except TimeoutError:
                log.warning("backends_slow", waited_s=FIRST_LOOKS_S)

    def measure(self) -> None:
        """Bring every gauge of the engines up to date; called when metrics are read."""
        self.router.measure()
        rows = [
            stats
            for stats in (
                self._wire.stats() if self._wire else None,
                self._hosted.connections() if self._hosted else None,
            )
            if stats
        ]
        for state in ("idle", "in_use", "waiting") if rows else ():
            self._metrics.upstream_connections.labels(state).set(sum(row[state] for row in rows))

    async def close(self) -> None:
        """End all looks and connections."""
        for _, task in self._loops.values():
            task.cancel()
        self._loops.clear()
        self.router.set_pools([])
        if self._hosted is not None:
            await self._hosted.close()
        if self._wire is not None:
            await self._wire.close()

    # ---- at run time

    def add(
        self, value: dict[str, Any], *, persist: bool = False, environ: Mapping[str, str] | None = None
    ) -> EngineServer:
        """Add a backend.

        Takes   value: the fields of BackendSpec; persist: also after a restart
        Raises  Invalid · Conflict: there is one of that name
        """
        spec = parse_backend(value, environ or os.environ)
        if spec.name in self._servers or spec.name in {"hosted", "demo"}:
            raise Conflict(
                f"There is a backend {spec.name!r} already; remove it first, or give another `name`.",
                code="backend_exists",
            )
        server = self._open(spec, self.router.settings, "persisted" if persist else "runtime")
        align_total(server.member, [s.member for s in self._servers.values() if s is not server])
        self._removed.discard(spec.name)
        self._runtime.add(spec.name)
        self._put()
        if persist:
            self._changes.added[spec.name] = {k: v for k, v in value.items() if v not in (None, "", [])} | {
                "name": spec.name
            }
            if spec.name in self._changes.removed:
                self._changes.removed.remove(spec.name)
            self._persist()
        log.info("backend_added", backend=spec.name, url=spec.url, persist=persist)
        return server

    def remove(self, name: str, *, persist: bool = False) -> None:
        """Take a backend out: it gets no new requests, its running answers end.

        Raises  NotFound
        """
        self._server(name)
        self._removed.add(name)
        self._runtime.discard(name)
        self._drop(name)
        self._put()
        if persist or name in self._changes.added:
            self._changes.added.pop(name, None)
            if any(spec.name == name for spec in self._spec.backends) and name not in self._changes.removed:
                self._changes.removed.append(name)
            self._persist()
        log.info("backend_removed", backend=name, persist=persist)

    def drain(self, name: str, *, resume: bool = False, persist: bool = False) -> EngineServer:
        """Give a backend no new requests, or (`resume`) give it some again.

        Raises  NotFound
        """
        server = self._server(name)
        server.state.is_draining = not resume
        (self._drained.discard if resume else self._drained.add)(name)
        if persist or resume:
            kept = [n for n in self._changes.drained if n != name] + ([] if resume else [name])
            if kept != self._changes.drained:
                self._changes.drained = kept
                self._persist()
        self.router.dispatcher.serve_queues()
        self.router.notify_changed()
        return server

    def set_strategy(self, strategy: str, *, pool: str = "", persist: bool = False) -> None:
        """Switch the strategy of a pool, or of all.

        Raises  Invalid · NotFound
        """
        self.router.set_strategy(strategy, pool)
        if not pool:
            self._strategies.clear()
        self._strategies[pool] = strategy
        if persist:
            if not pool:
                self._changes.strategies.clear()
            self._changes.strategies[pool] = strategy
            self._persist()

    def _persist(self) -> None:
        if self._path is None:
            raise Conflict(
                "The change is in force, but there is no state folder to keep it in.", code="not_persisted"
            )
        self._changes.write(self._path)

    def _server(self, name: str) -> EngineServer:
        server = self._servers.get(name)
        if server is None:
            known = ", ".join(self._servers) or "none"
            raise NotFound(
                f"There is no backend {name[:200]!r} that can be changed. Known: {known}.",
                code="no_such_backend",
            )
        return server

    # ---- opening and closing

    def _open(self, spec: BackendSpec, settings: EngineSettings, origin: str) -> EngineServer:
        if self._wire is None:
            self._wire = ConnectionPool(
                PoolLimits(
                    Timeouts(
                        connect_s=settings.upstream_connect_timeout_s,
                        first_byte_s=settings.upstream_first_byte_timeout_s,
                        idle_s=settings.upstream_idle_timeout_s,
                    ),
                    max_connections=settings.upstream_max_connections,
                )
            )
        server = EngineServer(
            spec,
            settings=settings,
            wire=self._wire,
            clock=self._clock,
            metrics=self._metrics,
            callbacks=self.router.callbacks,
            origin=origin,
            ssl_context=self._context(spec),
        )
        self._servers[spec.name] = server
        prober = HealthProber(server, on_capacity=self.router.dispatcher.serve_queues)
        self._loops[spec.name] = (prober, self._tasks.start(prober.run(), name=f"look-at-{spec.name}"))
        return server

    def _drop(self, name: str) -> None:
        """Take a server out; running answers go on, its looks end."""
        server = self._servers.pop(name)
        _, task = self._loops.pop(name)
        task.cancel()
        self._drained.discard(name)
        self._tasks.start(self._forget_when_idle(server), name=f"close-{name}")

    async def _forget_when_idle(self, server: EngineServer) -> None:
        waited_s = 0.0
        while server.in_flight and waited_s < PATIENCE_S:
            await asyncio.sleep(0.2)
            waited_s += 0.2
        if server.name not in self._servers:  # it may have come back under the same name
            server.stats.remove_metrics()

    def _context(self, spec: BackendSpec) -> ssl.SSLContext | None:
        """Make the TLS context of a server that wants its own; the same wishes share one."""
        tls = spec.tls
        if tls == Tls() or not spec.url.startswith("https:"):
            return None
        context = self._contexts.get(tls)
        if context is None:
            context = ssl.create_default_context(cafile=tls.ca_file or None)
            if tls.cert_file:
                context.load_cert_chain(tls.cert_file, tls.key_file)
            if not tls.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                log.warning("tls_not_verified", backend=spec.name)
            self._contexts[tls] = context
        return context

    def _replace_hosted(self, settings: EngineSettings) -> None:
        """Build the hosted backend where there is a key, or the demo engine where there is nothing else."""
        old = self._hosted
        self._hosted_from = settings
        if settings.novita_api_key.get_secret_value():
            wire = ConnectionPool(
                PoolLimits(
                    Timeouts(
                        connect_s=settings.upstream_connect_timeout_s,
                        first_byte_s=settings.upstream_first_byte_timeout_s,
                        idle_s=settings.upstream_idle_timeout_s,
                    ),
                    max_connections=settings.upstream_max_connections,
                )
            )
            self._hosted = HostedBackend(
                settings, wire=wire, clock=self._clock, metrics=self._metrics, callbacks=self.router.callbacks
            )
        else:
            self._hosted = None
        if old is not None:
            self._tasks.start(_close_when_idle(old), name="close-old-backend")

    def _put(self) -> None:
        """Put everything into the router's pools: those of servers as the configuration orders them, then hosted, then demo."""
        settings = self.router.settings
        names = list(
            dict.fromkeys(
                [
                    DEFAULT_POOL,
                    *(pool.name for pool in self._spec.pools),
                    *(s.pool for s in self._servers.values()),
                ]
            )
        )
        former = {pool.name: pool for pool in self.router.pools}
        pools = []
        if self._managed is not None and self._managed.cards():
            pools.append(self._pool(self._managed.pool, [self._managed], former, settings))
        for name in names:
            members: list[Backend] = [
                s for s in self._servers.values() if s.pool == name and name != HOSTED_POOL
            ]
            if members:
                pools.append(self._pool(name, members, former, settings))
        if self._hosted is not None:
            pools.append(
                self._pool(
                    HOSTED_POOL,
                    [self._hosted, *(s for s in self._servers.values() if s.pool == HOSTED_POOL)],
                    former,
                    settings,
                )
            )
        if not pools:
            aliases = Names(
                upstream=settings.upstream_base_model,
                public=settings.public_model,
                aliases=[alias for alias in settings.model_aliases if "=" not in alias],
            ).reported
            demo = (
                former["demo"].backends[0]
                if "demo" in former
                and former["demo"].backends[0].cards()[0].id == settings.public_model
                and former["demo"].backends[0].cards()[0].aliases == aliases
                else DemoBackend(
                    settings.public_model,
                    aliases,
                    clock=self._clock,
                    metrics=self._metrics,
                    callbacks=self.router.callbacks,
                )
            )
            pools.append(self._pool("demo", [demo], former, settings))
        self.router.set_pools(pools)

    def _pool(
        self, name: str, backends: list[Backend], former: dict[str, Pool], settings: EngineSettings
    ) -> Pool:
        spec = self._spec.pool(name)
        strategy = (
            self._strategies.get(name) or self._strategies.get("") or spec.strategy or settings.lb_strategy
        )
        if strategy not in STRATEGIES:
            strategy = FALLBACK_STRATEGY
        pool = former.get(name) or Pool(name, strategy=strategy)
        pool.overflow = spec.overflow
        for gone in [b for b in pool.backends if b not in backends]:
            pool.balancer.forget(gone.member)
        if pool.balancer.strategy != strategy:
            pool.balancer.strategy = strategy
        pool.backends = backends
        return pool


async def _close_when_idle(backend: Backend) -> None:
    """Close a replaced backend once its running answers have ended."""
    waited_s = 0.0
    while backend.in_flight and waited_s < PATIENCE_S:
        await asyncio.sleep(0.2)
        waited_s += 0.2
    await backend.close()
