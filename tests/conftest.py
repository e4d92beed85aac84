"""Shared by all tests: nothing here talks to anything but this machine."""

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
