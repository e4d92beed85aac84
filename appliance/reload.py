"""Reload: read the settings again, say what would change, put it in place without touching running answers, or put it back."""

import asyncio

from appliance.base import logs
from appliance.base.logs import get_logger
from appliance.base.proxies import Proxies
from appliance.base.settings import Problem, SettingDescription
from appliance.build import download_roots, lora_folders
from appliance.control.parts import ReloadResult, SettingChange
from appliance.models.table.differences import differences
from appliance.parts import Appliance
from appliance.settings import ROOMS, Settings, described, learn_secrets, load

log = get_logger("reload")


class Reloader:
    """Takes one reload at a time. Overrides of earlier reloads stay until the process ends."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._environ = dict(appliance.settings.environ)
        self._given = dict(appliance.settings.given)
        self._lock = asyncio.Lock()

    def described(self) -> list[SettingDescription]:
        return described(self._appliance.settings, self._appliance.settings.environ)

    async def reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        """Read everything again, with `overrides` on top.

        Takes   overrides: variable → value ("" = back to the default); dry_run: only say what would change
        Gives   ReloadResult: changes (secrets hidden), problems, applied
        """
        async with self._lock:
            given = {**self._given, **overrides}
            wanted, problems = load(given)
            fatal = tuple(p for p in problems if p.is_fatal)
            unknown = _unknown(overrides, self.described())
            if wanted is None or unknown:
                return ReloadResult(
                    (), (*fatal, *unknown), False, "Nothing was changed: the new settings have problems."
                )
            changes = self._changes(wanted)
            if dry_run or not changes:
                return ReloadResult(
                    changes, (), False, "Nothing was changed: a dry run." if dry_run else "Nothing differs."
                )
            try:
                self._apply(self._reloadable_only(wanted, changes))
            except Exception as exc:
                log.error("reload_failed", error=repr(exc), exc_info=exc)
                problem = Problem(
                    "reload",
                    "",
                    "settings that can be put in place",
                    f"{exc}. The former settings are in place again.",
                )
                return ReloadResult(
                    changes,
                    (problem,),
                    False,
                    "Nothing was changed: putting the new settings in place failed.",
                )
            self._given = given
            late = [c.variable for c in changes if c.needs_restart]
            message = "Applied." if not late else f"Applied, but for {', '.join(late)}: those need a restart."
            log.info("reloaded", changes=[c.variable for c in changes], need_restart=late)
            return ReloadResult(changes, (), True, message)

    def _changes(self, wanted: Settings) -> tuple[SettingChange, ...]:
        old = {row.variable: row for row in self.described()}
        changes = []
        for row in described(wanted, wanted.environ):
            before = old[row.variable]
            if row.value != before.value or (
                row.is_secret and _secret(wanted, row) != _secret(self._appliance.settings, row)
            ):
                changes.append(
                    SettingChange(row.variable, before.value, row.value, needs_restart=not row.is_reloadable)
                )
        changes += [
            SettingChange("backends", "", said, needs_restart=False)
            for said in self._appliance.fleet.describe_changes(wanted.fleet)
        ]
        if (
            Proxies.from_environ(wanted.environ) != self._appliance.downloader.proxies
        ):  # their values may hold a password
            changes.append(
                SettingChange(
                    "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
                    "",
                    "other proxies for downloads",
                    needs_restart=False,
                )
            )
        # Without a manager there is nobody yet to run them.
        changes += [
            SettingChange("models", "", said, needs_restart=self._appliance.manager is None)
            for said in differences(self._appliance.settings.catalogue, wanted.catalogue)
        ]
        return tuple(changes)

    def _reloadable_only(self, wanted: Settings, changes: tuple[SettingChange, ...]) -> Settings:
        """Keep what needs a restart as it is, so that the settings shown are those in force."""
        kept = {c.variable.lower() for c in changes if c.needs_restart}
        now = self._appliance.settings
        rooms = {}
        for name in ROOMS:
            present, new = getattr(now, name), getattr(wanted, name)
            stay = {field: getattr(present, field) for field in type(present).model_fields if field in kept}
            rooms[name] = new.model_copy(update=stay)
        return Settings(
            **rooms,
            environ=wanted.environ,
            given=wanted.given,
            fleet=wanted.fleet,
            catalogue=wanted.catalogue,
        )

    def _apply(self, settings: Settings) -> None:
        """Put settings in place; on failure put the former ones back and raise."""
        appliance, former = self._appliance, self._appliance.settings
        learn_secrets(settings)
        try:
            appliance.pipeline.apply(settings.front)
            logs.set_level(settings.general.log_level)
            if settings.engines != former.engines or settings.fleet != former.fleet:
                appliance.fleet.apply(settings.engines, settings.fleet, settings.environ)
            self._apply_models(settings)
            appliance.settings = settings
        except BaseException:
            appliance.pipeline.apply(former.front)
            logs.set_level(former.general.log_level)
            if settings.engines != former.engines or settings.fleet != former.fleet:
                appliance.fleet.apply(former.engines, former.fleet, former.environ)
            self._apply_models(former)
            raise
        appliance.lifecycle.mark_changed()

    def _apply_models(self, settings: Settings) -> None:
        self._appliance.downloader.apply(
            settings.downloads,
            output_roots=download_roots(settings),
            proxies=Proxies.from_environ(settings.environ),
        )
        self._appliance.lora_orders.apply(*lora_folders(settings))
        manager = self._appliance.manager
        if manager is None:
            return
        manager.set_swap_wait(settings.models.model_swap_wait_s)
        if manager.catalogue != settings.catalogue:
            manager.apply(settings.catalogue)
        self._appliance.fleet.refresh_managed(settings.engines)


def _secret(settings: Settings, row: SettingDescription) -> str:
    value = settings.value_of(row.variable)
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


def _unknown(overrides: dict[str, str], rows: list[SettingDescription]) -> tuple[Problem, ...]:
    known = {row.variable for row in rows} | {f"{row.variable}_FILE" for row in rows if row.is_secret}
    return tuple(
        Problem(name, "", "a variable that exists", "There is no such variable; see `appliance settings`.")
        for name in sorted(overrides)
        if name not in known
    )
