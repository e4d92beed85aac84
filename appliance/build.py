"""Build who answers, from the settings: at start, and again at each reload."""

from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.metrics import Metrics
from appliance.base.tasks import Tasks
from appliance.engines.fleet import Fleet
from appliance.engines.router import Router
from appliance.settings import Settings

CHANGES_FILE = "backends.json"


def build_fleet(settings: Settings, *, tasks: Tasks, clock: Clock, metrics: Metrics) -> Fleet:
    """Give the fleet with its router; `apply` opens the backends. Call it inside the event loop."""
    router = Router(settings.engines, clock=clock, metrics=metrics)
    fleet = Fleet(router, tasks=tasks, clock=clock, metrics=metrics, changes_path=Path(settings.host.state_dir) / CHANGES_FILE)
    fleet.apply(settings.engines, settings.fleet, settings.environ)
    return fleet
