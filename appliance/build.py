"""Build who answers, from the settings: at start, and again at each reload."""

from appliance.base.clock import Clock
from appliance.base.metrics import Metrics
from appliance.base.wire import Wire, WireLimits
from appliance.engines.aliases import Names
from appliance.engines.backends.contract import Backend
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.backends.hosted import HostedBackend
from appliance.engines.settings import EngineSettings


def build_backends(settings: EngineSettings, *, clock: Clock, metrics: Metrics) -> list[Backend]:
    """Give the hosted backend where there is a key, else the demo engine. Call it inside the event loop."""
    if not settings.novita_api_key.get_secret_value():
        names = Names(upstream=settings.upstream_base_model, public=settings.public_model, aliases=settings.model_aliases)
        return [DemoBackend(settings.public_model, names.reported, clock)]
    wire = Wire(WireLimits(
        connect_s=settings.upstream_connect_timeout_s, first_byte_s=settings.upstream_first_byte_timeout_s,
        idle_s=settings.upstream_idle_timeout_s, total_s=None, max_connections=settings.upstream_max_connections))
    return [HostedBackend(settings, wire=wire, clock=clock, metrics=metrics)]
