"""The parts of a running appliance, and views that combine several of them."""

import asyncio
import platform
import socket
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from appliance import __version__
from appliance.base.clock import SystemClock, format_rfc3339
from appliance.base.log_buffer import LogBuffer
from appliance.base.logs import get_logger
from appliance.base.metrics.registry import Metrics
from appliance.base.plain_text import public_address
from appliance.base.settings import Problem
from appliance.base.tasks import Tasks
from appliance.build import build_services, download_folders
from appliance.downloads.request import DownloadFolders
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.server.server import HttpServer
from appliance.front.system import failing
from appliance.front.ui.feed import Feed
from appliance.host.prepare import Prepared
from appliance.host.worker.worker import Worker
from appliance.lifecycle import Lifecycle
from appliance.models.manager.manager import ModelManager
from appliance.models.manager.no_models import NoModels
from appliance.models.pulls import PulledModels, Pulls
from appliance.models.status.measures import measure
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.file_walk import WalkedFolder
from appliance.models.table.library import ModelLibrary
from appliance.settings import Settings, download_dir

if TYPE_CHECKING:  # its libraries are loaded only with ACCOUNTS=1
    from appliance.account_status import AccountStatus
    from appliance.build_accounts import Accounts
    from appliance.build_market import Market
    from appliance.front.events.handlers import EventHandlers
    from appliance.market.proxy.service import GpuProxy

log = get_logger("appliance")
FOLDER = "MODEL_DIR"  # the variable, at the start of each problem of its files


class Appliance:
    """The parts of one appliance. They are made here, and opened and closed by `app.running`.

    Attributes:
        settings: As they are in force; a reload replaces them.
        lines: The latest lines of the log, for the control API.
        accounts: Who calls, and what it costs; None = there are no accounts (ACCOUNTS=0).
        account_status: What is shown of them; None as for `accounts`.
        market: Rents GPUs; None = it does not (MARKET=0).
        manager: Runs the models of this machine; None = none can be run here, or it is not open yet.
        library: The details of the files of those models; None as for `manager`.
        no_models: Reports that no models are run here; None = `manager` runs them, or nothing is open yet.
        event_handlers: The addresses of events; None as for `accounts`, or they are not open yet.
        manager_handlers: The HTTP addresses of `manager` or `no_models`; None = they are not open yet.
        server: The HTTP server; None = it is not open yet.
        ui_feed: What pages of the web UI follow; None = there is no web UI (UI=0), or it is not open yet.
        prepared: The results of `prepare`; None = not read yet.
        worker: Runs the worker; None = not made yet.
        http_addresses: (host, port) that are really listened on.
        control_addresses: Addresses of the control API that are really listened on.
    """

    def __init__(self, settings: Settings, warnings: list[str]) -> None:
        """Make the parts that need no opening. Called inside the event loop."""
        self.settings = settings
        self.clock = SystemClock()
        self.started_s = self.clock.now_s()
        self.metrics = Metrics()
        self.metrics.build_info.labels(__version__, platform.python_version()).set(1)
        self.lines = LogBuffer()
        self.lifecycle = Lifecycle(warnings)
        self.tasks = Tasks(on_death=self.lifecycle.task_died)
        pulled = PulledModels(download_folders(settings).home, clock=self.clock, on_change=self.reread_models)
        self.services = services = build_services(
            settings,
            tasks=self.tasks,
            clock=self.clock,
            metrics=self.metrics,
            state=self.lifecycle.state,
            lines=self.lines,
            on_fetched=pulled.add_fetched,
        )
        self.receipts, self.pipeline = services.receipts, services.pipeline
        self.fleet, self.router, self.adapters = services.fleet, services.router, services.adapters
        self.downloader, self.jobs, self.lora_orders = (
            services.downloader,
            services.jobs,
            services.lora_orders,
        )
        self.pulls = Pulls(self.jobs, pulled, lister=self.downloader.list_files, eject=self.eject)
        self.accounts: Accounts | None = None
        self.account_status: AccountStatus | None = None
        self.proxy: GpuProxy | None = None
        self.market: Market | None = None
        self.event_handlers: EventHandlers | None = None
        self.manager: ModelManager | None = None
        self.no_models: NoModels | None = None
        self.library: ModelLibrary | None = None
        self.manager_handlers: ManagerHandlers | None = None
        self.server: HttpServer | None = None
        self.ui_feed: Feed | None = None
        self.prepared: Prepared | None = None
        self.worker: Worker | None = None
        self.http_addresses: list[tuple[str, int]] = []
        self.control_addresses: list[str] = []

    # ---- views

    def status(self) -> dict[str, Any]:
        """Return the object that /healthz and GetStatus show, without secrets."""
        engines, state = self.router.settings, self.lifecycle.state.value
        cards = self.router.cards()
        prepared = self.prepared
        is_relayed = any(backend.kind in ("hosted", "demo") for backend in self.router.backends())
        return {
            "ok": state == "serving",
            "state": state,
            "version": __version__,
            "started_at": format_rfc3339(self.started_s),
            "started_at_s": self.started_s,
            "uptime_s": round(self.clock.now_s() - self.started_s, 3),
            "demo": self.router.is_demo,
            "engine": "demo (built in, no model behind it)"
            if self.router.is_demo
            else ", ".join(dict.fromkeys(backend.kind for backend in self.router.backends())),
            "public_model": engines.public_model if is_relayed else cards[0].id if cards else "",
            "upstream_base": engines.upstream_base_model if is_relayed else "",
            "aliases": list(cards[0].aliases) if cards else [],
            "novita_endpoints": list(map(public_address, engines.novita_openai_endpoints))
            if is_relayed
            else [],
            "backends": [asdict(backend) for backend in self.router.states()],
            "gpu": self.gpu(),
            "nat": prepared.nat if prepared else {},
            "worker": self.worker.as_dict() if self.worker else {"state": "off"},
            "steps": [step.as_dict() for step in prepared.steps] if prepared else [],
            "machine_id": prepared.machine_id if prepared else "",
            "in_flight": self.pipeline.answering,
            "warnings": list(self.lifecycle.warnings),
            **self._of_accounts(),
        }

    def _of_accounts(self) -> dict[str, Any]:
        """Return what the status shows of accounts; {} = there are none."""
        if self.account_status is None:
            return {}
        checks = self.account_status.checks()
        return {"degraded": failing(checks), "checks": checks}

    def identity(self) -> dict[str, Any]:
        """Return the object that GetIdentity shows: `{machine_id, hostname, gpu}`."""
        prepared = self.prepared
        return {
            "machine_id": prepared.machine_id if prepared else "",
            "hostname": socket.gethostname(),
            "gpu": self.gpu(),
        }

    def gpu(self) -> dict[str, Any]:
        """Return `gpu` of /healthz: {asked, mode, simulated, gpus, reason}; empty = not prepared yet."""
        return self.prepared.gpu if self.prepared else {}

    def measure(self) -> None:
        """Update all gauges; called when /metrics is read."""
        self.fleet.measure()
        self.adapters.status.measure()
        if self.manager is not None:
            measure(self.manager, self.metrics.router, self.clock.now_s())

    def folders(self) -> DownloadFolders:
        """Return the folders that may be downloaded to, by the settings in force."""
        return download_folders(self.settings)

    def grace_s(self) -> float:
        """Return the grace period of running requests in seconds: as requested, else as configured."""
        requested_s = self.lifecycle.grace_s
        return self.settings.front.shutdown_grace_s if requested_s is None else requested_s

    # ---- pulled and deleted models

    async def eject(self, alias: str) -> None:
        """Unload a model, if it runs on this machine."""
        if self.manager is not None and alias in self.manager.model_states:
            await self.manager.eject(alias)

    async def reread_models(self, walked: WalkedFolder | None = None) -> None:
        """Read the table of models again; called when models were pulled or deleted, or files came or went.

        Args:
            walked: What MODEL_DIR has; None = it is walked now.
        """
        settings = self.settings
        catalogue, problems = await asyncio.to_thread(
            read_catalogue,
            settings.models,
            settings.engines.config_path,
            download_dir(settings.downloads, settings.host),
            walked,
            settings.config,  # not as it may have been changed since: that is for a reload
            has_backends=bool(settings.fleet.backends),
        )
        if self.settings is not settings:  # a reload came in between: its settings must stay
            return await self.reread_models()  # MODEL_DIR may be another folder now
        self._warn_of_files(problems)
        fatal = [str(problem) for problem in problems if problem.is_fatal]
        if fatal:
            log.error("table_not_read", problems=fatal)
            return None
        if catalogue == settings.catalogue:
            return None
        self.settings = replace(settings, catalogue=catalogue)
        if self.manager is not None:
            self.manager.apply(catalogue)
            self.fleet.refresh_managed(settings.engines)
        return None

    def _warn_of_files(self, problems: list[Problem]) -> None:
        """Log what is newly wrong with the files of MODEL_DIR, and show what is wrong now in the status."""
        warnings = self.lifecycle.warnings
        now = [str(one) for one in problems if one.variable == FOLDER and not one.is_fatal]
        for text in now:
            if text not in warnings:
                log.warning("notice", text=text)
        kept = [text for text in warnings if not text.startswith(FOLDER)]
        if warnings != kept + now:
            warnings[:] = kept + now
            self.lifecycle.mark_changed()
