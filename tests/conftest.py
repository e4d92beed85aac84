"""Shared by all tests: nothing here talks to anything but this machine."""

import os

# As in the appliance: gRPC's fork handlers start threads in a child that has not yet called exec; they may end it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.journeys.llama_servers import llama, llama_binary, tiny_models
from tests.journeys.model_tables import managed
from tests.journeys.node_clients import node, node_packages
from tests.journeys.running import anyone, appliance, hosted, relay, spawn, start

__all__ = [
    "anyone",
    "appliance",
    "hosted",
    "llama",
    "llama_binary",
    "managed",
    "node",
    "node_packages",
    "relay",
    "spawn",
    "start",
    "tiny_models",
]
