"""Containers for the image's tests; every one is removed, and so is every volume."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.image.box import BARE, HARDENED, Box, docker, fresh_name

pytestmark = pytest.mark.image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/image/" in str(item.path):
            item.add_marker(pytest.mark.image)


@pytest.fixture(scope="session")
def image() -> str:
    """The image under test. There is no skipping: without an engine and the image these tests fail."""
    name = os.environ.get("APPLIANCE_IMAGE", "appliance")
    assert shutil.which("docker"), "No container engine: run `make image-test`, which brings one up."
    docker("image", "inspect", name)
    return name


@pytest.fixture
def volume() -> Iterator[str]:
    """A named volume of its own."""
    name = fresh_name()
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", name)


@pytest.fixture
def start(image: str, volume: str) -> Iterator[Callable[..., Box]]:
    """Start a container: start(*docker_run_arguments, command=(…)). It is removed before the volume is."""
    boxes: list[Box] = []

    def begin(*arguments: str, command: tuple[str, ...] = ()) -> Box:
        boxes.append(Box(image, *arguments, command=command))
        return boxes[-1]

    yield begin
    for box in boxes:
        box.close()


@pytest.fixture(scope="module")
def hardened(image: str) -> Iterator[Box]:
    """One healthy container with the documented flags, for tests that only look."""
    box = Box(image, *HARDENED)
    try:
        yield box.wait_health()
    finally:
        box.close()


@pytest.fixture(scope="module")
def powerless(image: str) -> Iterator[Box]:
    """One healthy container of an arbitrary user without any capability."""
    box = Box(image, *BARE, "--user", "12345:12345")
    try:
        yield box.wait_health()
    finally:
        box.close()
