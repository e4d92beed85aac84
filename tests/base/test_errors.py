"""The tree of errors: kinds, codes, and which of them may be retried."""

import errno

import pytest

from appliance.base import errors
from appliance.base.errors import ApplianceError, Kind, describe_os_error, write_remedy

TYPES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ApplianceError) and value is not ApplianceError
]


def test_every_kind_has_exactly_one_type() -> None:
    assert sorted(kind.value for kind in Kind) == sorted(one.kind.value for one in TYPES)


def test_only_temporary_failures_are_retryable() -> None:
    assert {one.kind for one in TYPES if one.retryable} == {Kind.EXHAUSTED, Kind.TIMEOUT, Kind.UNAVAILABLE}


@pytest.mark.parametrize("one", TYPES)
def test_code_of_the_raise_wins_over_the_types_own(one: type[ApplianceError]) -> None:
    assert one("m").code == one.default_code
    error = one("m", code="special", param="messages.0", retry_after_s=2.0, details={"a": 1})
    assert (str(error), error.code, error.param) == ("m", "special", "messages.0")
    assert (error.retry_after_s, error.details) == (2.0, {"a": 1})


BIND_TEXT = "error while attempting to bind on address ('127.0.0.1', 80): address already in use"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "/x"), "No such file or directory: /x"),
        (OSError(errno.EADDRINUSE, BIND_TEXT), "Address already in use"),
        (
            OSError(errno.EACCES, "cannot listen on a:1: Permission denied"),
            "cannot listen on a:1: Permission denied",
        ),
        (OSError("no number"), "no number"),
    ],
)
def test_os_errors_are_said_without_their_number(error: OSError, text: str) -> None:
    assert describe_os_error(error) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "The disk is full: free some space."),
        (errno.EDQUOT, "The disk quota is used up: free some space, or raise it."),
        (errno.EROFS, "The file system is read-only: mount it writable."),
        (errno.EACCES, "Make the folder writable."),
        (None, "Make the folder writable."),
    ],
)
def test_the_remedy_fits_why_a_file_was_not_written(number: int | None, text: str) -> None:
    assert write_remedy(OSError(number, "x")) == text
