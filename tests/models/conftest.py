"""Shared by the tests of the models' room."""

from tests.models.manager_harness import open_manager

__all__ = ["open_manager"]
