"""What each outcome of an attempt means: the value on the wire, the breaker, the retry, the error counters."""

import re
from pathlib import Path

import pytest

import appliance.base
from appliance.engines.outcome import BreakerEffect, Finish, Outcome, Retry

B, R = BreakerEffect, Retry


@pytest.mark.parametrize(
    ("outcome", "value", "breaker", "retry", "is_error"),
    [
        # the server responded
        (Outcome.OK, "ok", B.SUCCEEDED, R.NEVER, False),
        (Outcome.REFUSED, "refused", B.NONE, R.NEVER, False),
        (Outcome.PASSED, "passed", B.SUCCEEDED, R.NEVER, False),
        # the client left
        (Outcome.CANCELLED, "cancelled", B.NONE, R.NEVER, False),
        (Outcome.CLIENT_LEFT, "client_left", B.NONE, R.NEVER, False),
        # the server is healthy, but cannot answer the request
        (Outcome.FULL, "full", B.NONE, R.FREE, True),
        (Outcome.ADAPTER_MISSING, "adapter_missing", B.NONE, R.FREE, True),
        (Outcome.CONTEXT, "context", B.NONE, R.LARGER_CONTEXT, True),
        (Outcome.KEY_REFUSED, "key_refused", B.NONE, R.BUDGET, True),
        (Outcome.NOT_FOUND, "status_404", B.NONE, R.BUDGET, True),
        (Outcome.UNSUPPORTED, "unsupported", B.NONE, R.FREE, True),
        (Outcome.POOL, "pool", B.NONE, R.BUDGET, True),
        # the server or the request is at fault
        (Outcome.ENGINE_ERROR, "engine_error", B.UNDECIDED, R.BUDGET, True),
        (Outcome.ERROR_EVENT, "error_event", B.UNDECIDED, R.BUDGET, True),
        # the server failed
        *[
            (outcome, outcome.value, B.FAILED, R.BUDGET, True)
            for outcome in (
                *(
                    Outcome.DNS,
                    Outcome.CONNECT,
                    Outcome.TLS,
                    Outcome.FIRST_BYTE,
                    Outcome.HEAD,
                    Outcome.LOST,
                    Outcome.TOTAL,
                ),
                *(
                    Outcome.STATUS,
                    Outcome.LOADING,
                    Outcome.IDLE,
                    Outcome.BROKEN,
                    Outcome.CLOSED,
                    Outcome.INVALID_RESPONSE,
                ),
                *(
                    Outcome.EMPTY_STREAM,
                    Outcome.CUT_OFF,
                    Outcome.UPSTREAM,
                    Outcome.UNAVAILABLE,
                    Outcome.TIMEOUT,
                ),
            )
        ],
    ],
)
def test_what_an_outcome_means(
    outcome: Outcome, value: str, breaker: BreakerEffect, retry: Retry, is_error: bool
) -> None:
    assert (outcome.value, outcome.breaker, outcome.retry, outcome.is_error) == (
        value,
        breaker,
        retry,
        is_error,
    )


def test_the_table_above_names_every_outcome() -> None:
    [table] = [mark for mark in test_what_an_outcome_means.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {row[0] for row in table.args[1]} == set(Outcome)


@pytest.mark.parametrize(
    ("outcome", "status", "value"),
    [
        (Outcome.OK, 200, "ok"),
        (Outcome.STATUS, 502, "status_502"),
        (Outcome.ENGINE_ERROR, 500, "status_500"),
        (Outcome.NOT_FOUND, 404, "status_404"),
        (Outcome.CONNECT, None, "connect"),
    ],
)
def test_only_an_error_status_shows_its_number(outcome: Outcome, status: int | None, value: str) -> None:
    assert outcome.render(status) == value


def test_every_phase_of_a_failed_exchange_is_an_outcome() -> None:
    sources = Path(appliance.base.__path__[0]).rglob("*.py")
    phases = {phase for path in sources for phase in re.findall(r'phase="([a-z_]+)"', path.read_text())}
    assert phases > {"connect", "first_byte"}
    assert {Outcome.of_phase(phase).value for phase in phases} == phases


def test_finishes_have_the_values_of_the_access_log() -> None:
    assert [finish.value for finish in Finish] == ["done", "client_left", "cut_off", "error"]
