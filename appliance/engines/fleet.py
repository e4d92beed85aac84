"""The set of backends: aligned with the configuration at start and reloads, and changed at run time.

A server whose definition stays the same keeps its state. A change at run time is lost at a restart unless it
is persisted (see runtime_changes.py).
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base.balancing import STRATEGIES, align_total
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Invalid, NotFound
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Timeouts
from appliance.engines.aliases import ModelNames
from appliance.engines.backends.contract import Backend
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.backends.hosted import HostedBackend
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.backends.prober import HealthProber
from appliance.engines.backends.server import EngineServer
from appliance.engines.backends.tls import TlsContexts
from appliance.engines.pool import Pool
from appliance.engines.router import Router
from appliance.engines.runtime_changes import RuntimeChanges
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import DEFAULT_POOL, HOSTED_POOL, BackendSpec, FleetSpec, parse_backend

log = get_logger("fleet")
DRAIN_TIMEOUT_S = 3600.0  # for the running responses of a removed backend
DRAIN_POLL_S = 0.2
FIRST_PROBES_TIMEOUT_S = 2.0
LEARN_TIMEOUT_S = 2.0
FALLBACK_STRATEGY = "round_robin"  # for unknown names at start; Source: docs/compatibility.md
RESERVED_NAMES = {"hosted", "demo"}
DEMO_POOL = "demo"


@dataclass(frozen=True, slots=True)
class _Probed:
    """A server with the loop that probes it."""

    server: EngineServer
    prober: HealthProber
    task: "asyncio.Task[Any]"


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
        is_own_address: Callable[[str], bool] = lambda url: False,
    ) -> None:
        """Make an empty fleet.

        Args:
            changes_path: The file of changes that outlast a restart; None = none do.
            is_own_address: Whether a URL is the appliance's own, which is refused as a backend.
        """
        self.router = router
        self._is_own_address = is_own_address
        router.connect_learner(self.learn_models)
        self._tasks = tasks
        self._clock = clock
        self._metrics = metrics
        self._path = changes_path
        self._changes = RuntimeChanges.read(changes_path) if changes_path else RuntimeChanges()
        self._spec = FleetSpec()
        self._probed: dict[str, _Probed] = {}
        self._managed: ManagedBackend | None = None
        self._hosted: HostedBackend | None = None
        self._hosted_settings: EngineSettings | None = None
        self._demo: DemoBackend | None = None
        self._wire: ConnectionPool | None = None
        self._tls = TlsContexts()
        self._strategies: dict[str, str] = dict(self._changes.strategies)
        self._runtime: set[str] = set()  # added while running
        self._removed: set[str] = set(self._changes.removed)
        self._drained: set[str] = set(self._changes.drained)

    async def learn_models(self) -> None:
        """Ask every server for its models, LEARN_TIMEOUT_S at most; those that were just asked are not."""
        learning = [
            self._tasks.start(probed.prober.learn(), name=f"learn-{name}")
            for name, probed in self._probed.items()
            if not probed.server.spec.models
        ]
        if learning:
            await asyncio.wait(learning, timeout=LEARN_TIMEOUT_S)

    def servers(self) -> list[EngineServer]:
        """List the servers."""
        return [probed.server for probed in self._probed.values()]

    # ---- aligned with the configuration

    def apply(
        self, settings: EngineSettings, spec: FleetSpec, environ: Mapping[str, str] | None = None
    ) -> list[str]:
        """Align the backends with `spec`, and with what was changed at run time.

        1. a server that is not wanted any more  → removed
        2. one whose definition is the same      → keeps its state, takes the settings
        3. one with another definition           → replaced
        4. one that is new                       → opened

        Returns:
            What differs, one sentence each.
        """
        former_strategy = self.router.settings.lb_strategy
        wanted = self._wanted(spec, environ or os.environ)
        differences = []
        for name in [name for name in self._probed if name not in wanted]:  # 1
            differences.append(f"the backend {name} is removed")
            self._drop(name)
        for name, (one, origin) in wanted.items():
            present = self._probed.get(name)
            if present is not None and present.server.spec == one:  # 2
                present.server.apply(settings, origin)
                continue
            differences.append(f"the backend {name} is {'changed' if present else 'added'}")
            if present is not None:  # 3
                self._drop(name)
            self._open(one, settings, origin)  # 3, 4
        for name in self._drained & set(self._probed):
            self._probed[name].server.state.is_draining = True
        self._spec = spec
        if settings != self._hosted_settings:
            self._replace_hosted(settings)
        if former_strategy != settings.lb_strategy:
            self._strategies = dict(
                self._changes.strategies
            )  # LB_STRATEGY is newer than the changes that were not persisted
        self.router.apply(settings)
        self._update_pools()
        return differences

    def _wanted(self, spec: FleetSpec, environ: Mapping[str, str]) -> dict[str, tuple[BackendSpec, str]]:
        """Return the servers that must exist, each with its origin."""
        wanted = {one.name: (one, "configured") for one in spec.backends if one.name not in self._removed}
        for name, value in self._changes.added.items():
            try:
                wanted.setdefault(name, (parse_backend(value, environ), "persisted"))
            except ApplianceError as exc:
                log.error("persisted_backend_unusable", backend=name, error=str(exc))
        for name in self._runtime & set(self._probed):
            wanted.setdefault(name, (self._probed[name].server.spec, "runtime"))
        return wanted

    def describe_changes(self, spec: FleetSpec) -> list[str]:
        """Return what `apply` would change, one sentence each."""
        wanted = {one.name: one for one in spec.backends if one.name not in self._removed}
        kept = set(self._changes.added) | self._runtime
        rows = [
            f"the backend {name} is removed"
            for name in self._probed
            if name not in wanted and name not in kept
        ]
        for name, one in wanted.items():
            present = self._probed.get(name)
            if present is None:
                rows.append(f"the backend {name} is added")
            elif present.server.spec != one and name not in kept:
                rows.append(f"the backend {name} is changed")
        former = {pool.name: pool for pool in self._spec.pools}
        names = {pool.name for pool in spec.pools}
        rows += [f"the pool {pool.name} is changed" for pool in spec.pools if former.get(pool.name) != pool]
        rows += [f"the pool {name} is removed" for name in former if name not in names]
        return rows

    def set_managed(self, backend: ManagedBackend) -> None:
        """Set the model manager's backend: the models of its table are found before all others."""
        self._managed = backend
        self._update_pools()

    def refresh_managed(self, settings: EngineSettings) -> None:
        """Take a changed model table, or changed settings for requests to it."""
        if self._managed is not None:
            self._managed.apply(settings)
            self._update_pools()  # the table may have its first model now, or have become empty

    async def wait_first_probes(self) -> None:
        """Wait until every server was probed once, FIRST_PROBES_TIMEOUT_S at most."""
        if not self._probed:
            return
        first = asyncio.gather(*(probed.prober.wait_first_probe() for probed in self._probed.values()))
        try:
            await asyncio.wait_for(first, FIRST_PROBES_TIMEOUT_S)
        except TimeoutError:
            log.warning("first_probes_slow", waited_s=FIRST_PROBES_TIMEOUT_S)

    def measure(self) -> None:
        """Bring every gauge of the engines up to date; called when metrics are read."""
        self.router.measure()
        rows = []
        if self._wire is not None:
            rows.append(self._wire.stats())
        if self._hosted is not None:
            rows.append(self._hosted.connections())
        for state in ("idle", "in_use", "waiting") if rows else ():
            self._metrics.upstream_connections.labels(state).set(sum(row[state] for row in rows))

    async def close(self) -> None:
        """Stop all probes and close all connections."""
        for probed in self._probed.values():
            probed.task.cancel()
        self._probed.clear()
        self.router.set_pools([])
        if self._hosted is not None:
            await self._hosted.close()
        if self._wire is not None:
            await self._wire.close()

    # ---- changed at run time

    def add(
        self, value: dict[str, Any], *, persist: bool = False, environ: Mapping[str, str] | None = None
    ) -> EngineServer:
        """Add a backend.

        Args:
            value: The fields of BackendSpec.
            persist: It is added again after a restart.
            environ: Where `api_key_env` is looked up; None = the process's environment.

        Raises:
            Invalid: A field is wrong.
            Conflict: There is one of that name, or the change cannot be persisted.
        """
        spec = parse_backend(value, environ or os.environ)
        if self._is_own_address(spec.url):
            raise Invalid(
                f"{spec.url} is the appliance's own address: each request would come back to it. Give the "
                "engine's address.",
                param="url",
            )
        if spec.name in self._probed or spec.name in RESERVED_NAMES:
            raise Conflict(
                f"There is a backend {spec.name!r} already. Remove it first, or give another `name`.",
                code="backend_exists",
            )
        others = [server.member for server in self.servers()]
        server = self._open(spec, self.router.settings, "persisted" if persist else "runtime")
        align_total(server.member, others)
        self._removed.discard(spec.name)
        self._runtime.add(spec.name)
        self._update_pools()
        if persist:
            self._changes.add(spec.name, value)
            self._persist()
        log.info("backend_added", backend=spec.name, url=server.shown_url, persist=persist)
        return server

    def remove(self, name: str, *, persist: bool = False) -> None:
        """Remove a backend: it gets no new requests, its running responses end.

        Args:
            name: The backend.
            persist: It stays removed after a restart, although it is configured.

        Raises:
            NotFound: There is no such server.
            Conflict: The change cannot be persisted.
        """
        self._server(name)
        self._removed.add(name)
        self._runtime.discard(name)
        self._drop(name)
        self._update_pools()
        if persist or name in self._changes.added:
            is_configured = any(spec.name == name for spec in self._spec.backends)
            self._changes.remove(name, is_configured=is_configured)
            self._persist()
        log.info("backend_removed", backend=name, persist=persist)

    def drain(self, name: str, *, resume: bool = False, persist: bool = False) -> EngineServer:
        """Give a backend no new requests.

        Args:
            name: The backend.
            resume: Give it requests again; this is always persisted.
            persist: It stays drained after a restart.

        Raises:
            NotFound: There is no such server.
            Conflict: The change cannot be persisted.
        """
        server = self._server(name)
        server.state.is_draining = not resume
        if resume:
            self._drained.discard(name)
        else:
            self._drained.add(name)
        if (persist or resume) and self._changes.drain(name, is_draining=not resume):
            self._persist()
        self.router.dispatcher.serve_queues()
        self.router.notify_changed()
        return server

    def set_strategy(self, strategy: str, *, pool: str = "", persist: bool = False) -> None:
        """Switch the strategy of a pool.

        Args:
            strategy: One of STRATEGIES.
            pool: "" = all pools.
            persist: The strategy stays after a restart.

        Raises:
            Invalid: There is no such strategy.
            NotFound: There is no such pool.
            Conflict: The change cannot be persisted.
        """
        self.router.set_strategy(strategy, pool)
        if not pool:
            self._strategies.clear()
        self._strategies[pool] = strategy
        if persist:
            self._changes.set_strategy(strategy, pool)
            self._persist()

    def _persist(self) -> None:
        if self._path is None:
            raise Conflict(
                "The change is in force, but will be lost at a restart: no state folder (STATE_DIR).",
                code="not_persisted",
            )
        self._changes.write(self._path)

    def _server(self, name: str) -> EngineServer:
        probed = self._probed.get(name)
        if probed is None:
            known = ", ".join(self._probed) or "none"
            raise NotFound(
                f"There is no backend {name[:200]!r} that can be changed. Known: {known}.",
                code="no_such_backend",
            )
        return probed.server

    # ---- opening and closing

    def _open(self, spec: BackendSpec, settings: EngineSettings, origin: str) -> EngineServer:
        if self._wire is None:
            self._wire = _make_wire(settings)
        server = EngineServer(
            spec,
            settings=settings,
            wire=self._wire,
            clock=self._clock,
            metrics=self._metrics,
            callbacks=self.router.callbacks,
            origin=origin,
            ssl_context=self._tls.context_for(spec),
        )
        prober = HealthProber(server, on_capacity=self.router.dispatcher.serve_queues)
        task = self._tasks.start(prober.run(), name=f"probe-{spec.name}")
        self._probed[spec.name] = _Probed(server, prober, task)
        return server

    def _drop(self, name: str) -> None:
        """Remove a server; its running responses continue, its probes stop."""
        probed = self._probed.pop(name)
        probed.task.cancel()
        self._drained.discard(name)
        self._tasks.start(self._remove_metrics_when_idle(probed.server), name=f"close-{name}")

    async def _remove_metrics_when_idle(self, server: EngineServer) -> None:
        await _wait_idle(server)
        if server.name not in self._probed:  # it may have been added again under the same name
            server.stats.remove_metrics()

    def _replace_hosted(self, settings: EngineSettings) -> None:
        """Build a new hosted backend if there is a key; the former one is closed when it is idle."""
        former, self._hosted, self._hosted_settings = self._hosted, None, settings
        if settings.novita_api_key.get_secret_value():
            self._hosted = HostedBackend(
                settings,
                wire=_make_wire(settings),
                clock=self._clock,
                metrics=self._metrics,
                callbacks=self.router.callbacks,
            )
        if former is not None:
            self._tasks.start(_close_when_idle(former), name="close-old-backend")

    # ---- pools

    def _update_pools(self) -> None:
        """Put everything into the router's pools.

        1. the models of the model manager   3. the hosted API, with the servers of its pool
        2. servers, as they are configured   4. if there is nothing else: the manager where models of this
                                                machine are wanted, else the demo engine
        """
        former = {pool.name: pool for pool in self.router.pools}
        members: dict[str, list[Backend]] = {}
        if self._managed is not None and self._managed.cards():  # 1
            members[self._managed.pool] = [self._managed]
        servers = self.servers()
        configured = [pool.name for pool in self._spec.pools]
        for name in dict.fromkeys([DEFAULT_POOL, *configured, *(server.pool for server in servers)]):  # 2
            in_pool: list[Backend] = [server for server in servers if server.pool == name != HOSTED_POOL]
            if in_pool:
                members[name] = [*members.get(name, []), *in_pool]
        if self._hosted is not None:  # 3
            members[HOSTED_POOL] = [self._hosted, *(one for one in servers if one.pool == HOSTED_POOL)]
        if not members:  # 4
            if self._managed is not None and self._managed.is_wanted:
                members[self._managed.pool] = [self._managed]
            else:
                members[DEMO_POOL] = [self._demo_backend()]
        self.router.set_pools(
            [self._pool(name, backends, former.get(name)) for name, backends in members.items()]
        )

    def _pool(self, name: str, backends: list[Backend], former: Pool | None) -> Pool:
        """Return a pool with these backends; an existing one keeps the state of its balancer."""
        spec = self._spec.pool(name)
        strategy = (
            self._strategies.get(name)
            or self._strategies.get("")
            or spec.strategy
            or self.router.settings.lb_strategy
        )
        if strategy not in STRATEGIES:
            strategy = FALLBACK_STRATEGY
        pool = former or Pool(name, strategy=strategy)
        pool.overflow = spec.overflow
        for backend in pool.backends:
            if backend not in backends:
                pool.balancer.forget(backend.member)
        if pool.balancer.strategy != strategy:
            pool.balancer.strategy = strategy
        pool.backends = backends
        return pool

    def _demo_backend(self) -> DemoBackend:
        """Return the demo engine with the names of the settings; while those stay the same, it is kept."""
        settings = self.router.settings
        aliases = ModelNames(
            upstream=settings.upstream_base_model,
            public=settings.public_model,
            aliases=[alias for alias in settings.model_aliases if "=" not in alias],
        ).reported
        if self._demo is None or not self._demo.has_names(settings.public_model, aliases):
            self._demo = DemoBackend(
                settings.public_model,
                aliases,
                clock=self._clock,
                metrics=self._metrics,
                callbacks=self.router.callbacks,
            )
        return self._demo


def _make_wire(settings: EngineSettings) -> ConnectionPool:
    return ConnectionPool(
        PoolLimits(
            Timeouts(
                connect_s=settings.upstream_connect_timeout_s,
                first_byte_s=settings.upstream_first_byte_timeout_s,
                idle_s=settings.upstream_idle_timeout_s,
            ),
            max_connections=settings.upstream_max_connections,
            max_idle_per_origin=settings.upstream_max_connections,
        )
    )


async def _wait_idle(backend: Backend) -> None:
    """Wait until the running responses of a backend have ended, DRAIN_TIMEOUT_S at most."""
    waited_s = 0.0
    while backend.in_flight and waited_s < DRAIN_TIMEOUT_S:
        await asyncio.sleep(DRAIN_POLL_S)
        waited_s += DRAIN_POLL_S


async def _close_when_idle(backend: Backend) -> None:
    await _wait_idle(backend)
    await backend.close()
