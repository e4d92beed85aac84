"""Fixtures shared by the tests of appliance/models."""

from tests.models.manager_harness import open_manager

__all__ = ["open_manager"]
