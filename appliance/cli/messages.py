"""The messages of the control API, imported when needed: `appliance ctl --help` starts without gRPC."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.control.v1.control_pb2 import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        from appliance.control.v1 import control_pb2

        return getattr(control_pb2, name)
