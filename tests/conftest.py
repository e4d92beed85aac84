"""Shared by all tests: nothing here talks to anything but this machine."""

from tests.journeys.running import anyone, appliance, hosted, relay, spawn, start

__all__ = ["anyone", "appliance", "hosted", "relay", "spawn", "start"]
