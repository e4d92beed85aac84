"""Shared by the tests of the engines' room."""

from tests.models.manager_harness import open_manager

__all__ = ["open_manager"]
