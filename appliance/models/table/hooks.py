"""Commands that are run before a model is loaded and after it was unloaded."""

from dataclasses import dataclass

from pydantic import Field

from appliance.models.table.engine import Words
from appliance.models.table.section import Section

HOOK_TIMEOUT_S = 60


class HookKeys(Section):
    """The keys of a model's hooks."""

    before_load: Words | None = Field(
        default=None, description="A command that is run before each load; if it fails, so does the load"
    )
    after_unload: Words | None = Field(
        default=None,
        description="A command that is run when a server of it has ended, however that came about",
    )
    hook_timeout_sec: int = Field(
        default=HOOK_TIMEOUT_S,
        ge=1,
        le=3600,
        description="Longest time of each of the two, in seconds; then it is ended",
    )


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands around the life of a server. Empty words = there is none."""

    before_load: tuple[str, ...] = ()
    after_unload: tuple[str, ...] = ()
    timeout_s: int = HOOK_TIMEOUT_S


NO_HOOKS = Hooks()


def hooks_of(keys: HookKeys) -> Hooks:
    """Return the hooks of a row of the table."""
    return Hooks(keys.before_load or (), keys.after_unload or (), keys.hook_timeout_sec)
