"""The calls about settings: list them, read them again."""

from appliance.base.errors import Invalid
from appliance.control.calls.group import AnyContext, CallGroup
from appliance.control.convert.status import to_change, to_problem, to_setting
from appliance.control.errors import RolledBack
from appliance.control.parts import ReloadResult
from appliance.control.v1 import control_pb2 as pb


class SettingsCalls(CallGroup):
    """GetSettings, Reload."""

    async def GetSettings(
        self, request: pb.GetSettingsRequest, context: AnyContext
    ) -> pb.GetSettingsResponse:
        """Return every setting with its value in force, or only those that are set."""
        rows = self._parts.settings()
        return pb.GetSettingsResponse(
            settings=[to_setting(row) for row in rows if row.is_set or not request.set_only]
        )

    async def Reload(self, request: pb.ReloadRequest, context: AnyContext) -> pb.ReloadResponse:
        """Read the settings again and put them in place; a caller that leaves does not interrupt it."""
        result = await self._run_uninterrupted(self._reload(dict(request.overrides), request.dry_run))
        if result.problems and not request.dry_run:
            raise _error_of(result)
        return pb.ReloadResponse(
            applied=result.applied,
            message=result.message,
            changes=[to_change(change) for change in result.changes],
            problems=[to_problem(problem) for problem in result.problems],
        )

    async def _reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        return await self._parts.reload(overrides, dry_run)


def _error_of(result: ReloadResult) -> Invalid | RolledBack:
    """Return the error of a reload that was not applied; problems with changes: it was rolled back."""
    text = f"{result.message} {'; '.join(str(problem) for problem in result.problems)}"
    violations = [
        (
            problem.variable,
            f"allowed: {problem.allowed}. {problem.remedy}" if problem.allowed else problem.remedy,
        )
        for problem in result.problems
    ]
    if result.changes:
        return RolledBack(text, details={"violations": violations})
    return Invalid(text, code="bad_settings", details={"violations": violations})
