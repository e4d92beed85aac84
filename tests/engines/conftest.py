"""Fixtures of the engines' tests."""

from tests.models.manager_harness import open_manager

__all__ = ["open_manager"]
