"""Kind → class: the members of the family of backends. A new member is one file and one row."""

from appliance.engines.backends.contract import Backend
from appliance.engines.backends.demo import DemoBackend
from appliance.engines.backends.hosted import HostedBackend

BACKENDS: dict[str, type[Backend]] = {
    "hosted": HostedBackend,
    "demo": DemoBackend,
}
