"""Databases for these tests; and the log as it was, since the programs set it up for themselves."""

from collections.abc import Iterator

import pytest
import structlog

from tests.storage_servers import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    yield
    structlog.reset_defaults()
