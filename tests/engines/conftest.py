"""Shared by the tests of the engines' room."""

from tests.models.standin_house import open_house

__all__ = ["open_house"]
