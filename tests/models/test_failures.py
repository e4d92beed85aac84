"""What the end of a log and an exit code say about a load that failed, as a table."""

import pytest

from appliance.models.runner.failures import failure_of_exit


@pytest.mark.parametrize(
    ("code", "tail", "reason", "can_retry", "is_port"),
    [
        pytest.param(1, [], "llama-server exited with code 1", True, False, id="nothing-is-said"),
        pytest.param(-9, [], "llama-server was killed by signal 9", True, False, id="killed"),
        pytest.param(
            1,
            ["loading", "error: out of luck", "error: later"],
            "llama-server exited with code 1: error: out of luck",
            True,
            False,
            id="the-first-complaint-counts",
        ),
        pytest.param(
            1,
            ["warning: invalid locale", "failed to map file"],
            "llama-server exited with code 1: failed to map file",
            True,
            False,
            id="warnings-are-no-complaints",
        ),
        pytest.param(
            1,
            ["error: unknown argument: --x"],
            "llama-server exited with code 1: error: unknown argument: --x",
            False,
            False,
            id="permanent",
        ),
        pytest.param(127, [], "llama-server exited with code 127", False, False, id="no-such-program"),
        pytest.param(
            1,
            ["couldn't bind to port 8085", "failed to load model"],
            "llama-server exited with code 1: couldn't bind to port 8085",
            True,
            True,
            id="port-taken",
        ),
        pytest.param(
            1,
            ["error " + "x" * 500],
            "llama-server exited with code 1: error " + "x" * 294,
            True,
            False,
            id="cut",
        ),
    ],
)
def test_failure_of_exit(code: int, tail: list[str], reason: str, can_retry: bool, is_port: bool) -> None:
    failure = failure_of_exit(code, tail)
    assert (failure.reason, failure.can_retry, failure.is_port) == (reason, can_retry, is_port)
