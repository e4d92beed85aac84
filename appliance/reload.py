"""Reload: read the settings again, list the changes, apply them while requests run, or roll back."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from appliance.base import logs
from appliance.base.logs import get_logger
from appliance.base.proxies import Proxies
from appliance.base.settings import Problem, SettingDescription
from appliance.build import download_roots, lora_folders
from appliance.control.parts import ReloadResult, SettingChange
from appliance.downloads.engine import DownloadEngine
from appliance.engines.fleet import Fleet
from appliance.engines.lora.config_section import adapter_differences
from appliance.engines.lora.manager import AdapterManager
from appliance.engines.lora.orders import AdapterOrders
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.lifecycle import Lifecycle
from appliance.models.manager.manager import ModelManager
from appliance.models.table.differences import differences
from appliance.settings import PACKAGES, Settings, described, learn_secrets, load
from appliance.settings_prices import price_differences

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.build_accounts import Accounts

log = get_logger("reload")
REFUSED = "The settings were read again and not taken, those before stay in force"
PROXY_VARIABLES = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY"


class Reloadable(Protocol):
    """The parts that a reload changes: those of the appliance, or of a sidecar.

    Attributes:
        settings: Those in force; a reload replaces them.
        manager: Runs the models of this machine; None = none can be run here.
    """

    settings: Settings
    lifecycle: Lifecycle
    pipeline: RequestPipeline
    fleet: Fleet
    downloader: DownloadEngine
    adapters: AdapterManager
    lora_orders: AdapterOrders
    manager: ModelManager | None

    @property
    def accounts(self) -> "Accounts | None":
        """Who calls, and what it costs; None = there are no accounts."""
        ...


Read = Callable[[dict[str, str]], tuple[Settings | None, list[Problem]]]


class Reloader:
    """Runs one reload at a time. Overrides of earlier reloads stay in force until the process ends.

    Args:
        appliance: The parts.
        read: Reads the settings from an environment, as `settings.load` does.
    """

    def __init__(self, appliance: Reloadable, *, read: Read = load) -> None:
        self._appliance = appliance
        self._read = read
        self._given = dict(appliance.settings.given)
        self._warnings = list(appliance.lifecycle.warnings)
        self._lock = asyncio.Lock()

    def described(self) -> list[SettingDescription]:
        """Describe every variable with the value in force."""
        return described(self._appliance.settings, self._appliance.settings.environ)

    async def reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        """Read everything again, with `overrides` on top.

        1. the new settings are invalid         → nothing is changed
        2. nothing differs, or it is a dry run  → nothing is changed
        3. applying them fails                  → the previous ones are applied again
        4. else                                 → they are applied, except those that need a restart

        Args:
            overrides: Value by variable; "" = back to the default.
            dry_run: Only list the changes.

        Returns:
            The changes (secrets hidden), the problems, and whether the changes were applied.
        """
        async with self._lock:
            given, lifecycle = {**self._given, **overrides}, self._appliance.lifecycle
            wanted, problems = await self._read_steady(given)
            fatal = tuple(problem for problem in problems if problem.is_fatal)
            unknown = _unknown(overrides, self.described())
            if wanted is None or unknown:  # 1
                if not overrides and not dry_run:
                    lifecycle.warn_of_settings([*self._warnings, _refused(fatal)])
                text = "Nothing was changed: the new settings have problems."
                return ReloadResult((), (*fatal, *unknown), False, text)
            changes = self._changes(wanted)
            if not dry_run and not changes:
                self._show_warnings(problems)
            if dry_run or not changes:  # 2
                text = "Nothing was changed: a dry run." if dry_run else "Nothing differs."
                return ReloadResult(changes, (), False, text)
            try:
                self._apply(self._keep_others(wanted, changes))
            except Exception as exc:  # 3
                log.error("reload_failed", error=repr(exc), exc_info=exc)
                return ReloadResult(
                    changes,
                    (_not_applied(exc),),
                    False,
                    "Nothing was changed: putting the new settings in place failed.",
                )
            self._given = given  # 4
            self._show_warnings(problems)
            late = [change.variable for change in changes if change.needs_restart]
            text = "Applied." if not late else f"Applied, except for {', '.join(late)}: these need a restart."
            log.info("reloaded", text=text, changes=[one.variable for one in changes], need_restart=late)
            return ReloadResult(changes, (), True, text)

    async def _read_steady(self, given: dict[str, str]) -> tuple[Settings | None, list[Problem]]:
        """Read the settings in a thread; again where model files came or went meanwhile (`reread_models`).

        Else the reload would put back the models that were there when it began.
        """
        while True:
            present = self._appliance.settings
            found = await asyncio.to_thread(self._read, given)
            if self._appliance.settings is present:
                return found

    def _show_warnings(self, problems: list[Problem]) -> None:
        """Show the warnings about the settings that are in force now."""
        self._warnings = list(map(str, problems))
        self._appliance.lifecycle.warn_of_settings(self._warnings)

    # ---- what differs

    def _changes(self, wanted: Settings) -> tuple[SettingChange, ...]:
        """List what differs: variables, backends, proxies, models."""
        appliance = self._appliance
        changes = self._changed_variables(wanted)
        changes += [
            SettingChange("backends", "", text, needs_restart=False)
            for text in appliance.fleet.describe_changes(wanted.fleet)
        ]
        changes += [
            SettingChange("adapters", "", text, needs_restart=False)
            for text in adapter_differences(appliance.settings.adapters, wanted.adapters)
        ]
        if Proxies.from_environ(wanted.environ) != appliance.downloader.proxies:
            # Their values are not shown: they may contain a password.
            text = "other proxies for downloads"
            changes.append(SettingChange(PROXY_VARIABLES, "", text, needs_restart=False))
        if appliance.accounts is not None:
            changes += [
                SettingChange("prices", "", text, needs_restart=False)
                for text in price_differences(appliance.settings.prices, wanted.prices)
            ]
        changes += [  # without a manager the models cannot be run yet
            SettingChange("models", "", text, needs_restart=appliance.manager is None)
            for text in differences(appliance.settings.catalogue, wanted.catalogue)
        ]
        return tuple(changes)

    def _changed_variables(self, wanted: Settings) -> list[SettingChange]:
        now = self._appliance.settings
        old = {row.variable: row for row in self.described()}
        changes = []
        for row in described(wanted, wanted.environ):
            before = old[row.variable]
            if row.value != before.value or _raw(wanted, row) != _raw(now, row):  # secrets are not shown
                changes.append(
                    SettingChange(row.variable, before.value, row.value, needs_restart=not row.is_reloadable)
                )
        return changes

    def _keep_others(self, wanted: Settings, changes: tuple[SettingChange, ...]) -> Settings:
        """Return the new settings, with the present values of those that need a restart."""
        kept = {change.variable.lower() for change in changes if change.needs_restart}
        packages = {}
        for name in PACKAGES:
            present, new = getattr(self._appliance.settings, name), getattr(wanted, name)
            stay = {field: getattr(present, field) for field in type(present).model_fields if field in kept}
            packages[name] = new.model_copy(update=stay)
        return Settings(
            **packages,
            environ=wanted.environ,
            given=wanted.given,
            fleet=wanted.fleet,
            catalogue=wanted.catalogue,
            config=wanted.config,
            adapters=wanted.adapters,
            prices=wanted.prices if self._appliance.accounts is not None else (),
        )

    # ---- applying

    def _apply(self, settings: Settings) -> None:
        """Apply settings; on failure apply the previous ones again and raise."""
        appliance, former = self._appliance, self._appliance.settings
        learn_secrets(settings)
        has_other_backends = settings.engines != former.engines or settings.fleet != former.fleet
        try:
            self._put(settings, has_other_backends=has_other_backends)
            if settings.adapters != former.adapters:
                appliance.adapters.configure(settings.adapters)
            appliance.settings = settings
        except BaseException:
            self._put(former, has_other_backends=has_other_backends)
            raise
        appliance.lifecycle.mark_changed()

    def _put(self, settings: Settings, *, has_other_backends: bool) -> None:
        appliance = self._appliance
        appliance.pipeline.apply(settings.front)
        logs.set_level(settings.general.log_level)
        if has_other_backends:
            appliance.fleet.apply(settings.engines, settings.fleet, settings.environ)
        appliance.downloader.apply(
            settings.downloads,
            output_roots=download_roots(settings),
            proxies=Proxies.from_environ(settings.environ),
        )
        appliance.lora_orders.apply(*lora_folders(settings))
        if appliance.accounts is not None:
            appliance.accounts.money.set_file_prices(list(settings.prices))
        manager = appliance.manager
        if manager is None:
            return
        manager.set_swap_wait(settings.models.model_swap_wait_s)
        if manager.catalogue != settings.catalogue:
            manager.apply(settings.catalogue)
        appliance.fleet.refresh_managed(settings.engines)


async def reload_on_request(
    lifecycle: Lifecycle, reloader: Reloader, reporting: Callable[[], AbstractContextManager[None]]
) -> None:
    """Reload whenever `lifecycle.reload_requested` is set; requests during a reload lead to one more.

    Args:
        reporting: Returns a context that is open while a reload runs.
    """
    while True:
        await lifecycle.reload_requested.wait()
        lifecycle.reload_requested.clear()
        with reporting():
            try:
                log_result(await reloader.reload({}, dry_run=False))
            except Exception as exc:  # the settings in force stay, and so does this task
                log.error("reload_failed", error=repr(exc), exc_info=exc)


def log_result(result: ReloadResult) -> None:
    """Log how a reload ended whose response no client reads."""
    if result.problems:
        log.error("reload_refused", text=result.message, problems=list(map(str, result.problems)))
    elif not result.applied:
        log.info("reloaded", text=result.message, changes=[], need_restart=[])


def _refused(problems: Sequence[Problem]) -> str:
    return f"{REFUSED}: {'; '.join(map(str, problems))}"


def _not_applied(error: Exception) -> Problem:
    remedy = f"{error}. The former settings are in place again."
    return Problem("reload", "", "settings that can be put in place", remedy)


def _raw(settings: Settings, row: SettingDescription) -> str:
    value = settings.value_of(row.variable)
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


def _unknown(overrides: dict[str, str], rows: list[SettingDescription]) -> tuple[Problem, ...]:
    known = {row.variable for row in rows} | {f"{row.variable}_FILE" for row in rows if row.is_secret}
    remedy = "There is no such variable. See `appliance settings`."
    return tuple(
        Problem(name, "", "a variable that exists", remedy) for name in sorted(overrides) if name not in known
    )
