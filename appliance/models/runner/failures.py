"""Why an engine did not become ready, read from its log."""

import re
from collections.abc import Sequence

# Another load would fail as well. Source: docs/compatibility.md, the model manager's list.
PERMANENT_FAILURES = tuple(
    text.lower()
    for text in (
        "unsupported cache type",
        "error while handling argument",
        "model file not found",
        "invalid model path",
        "GGML_ASSERT",
        "llama_model_load",
        "unknown argument",
        "invalid argument",
        "failed to load model",
    )
)
PORT_TAKEN = ("couldn't bind", "address already in use")
NOT_STARTED = (126, 127)  # of shells and setpriv: the program is missing, or cannot be run
_COMPLAINT = re.compile(r"error|fail|invalid|couldn't|assert|unsupported|unknown|not found", re.IGNORECASE)
_WARNING = re.compile(r"\bwarn|^\S+ W ", re.IGNORECASE)
MAX_COMPLAINT_CHARS = 300


class LoadFailed(Exception):
    """An engine did not become ready.

    Args:
        reason: Why, for the operator.
        can_retry: False = it would fail again in the same way.
        is_port: Another program has the port; with another port it may succeed.
    """

    def __init__(self, reason: str, *, can_retry: bool = True, is_port: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.can_retry, self.is_port = reason, can_retry, is_port


def failure_of_exit(exit_code: int, tail: Sequence[str]) -> LoadFailed:
    """Say why a llama-server exited while it loaded.

    Args:
        exit_code: Its exit code, or minus the signal that ended it.
        tail: The last lines of its log.
    """
    text = "\n".join(tail).lower()
    # The first complaint is the cause; later ones only follow from it.
    complaint = next((line for line in tail if _COMPLAINT.search(line) and not _WARNING.search(line)), "")
    is_port = any(one in text for one in PORT_TAKEN)
    is_permanent = exit_code in NOT_STARTED or any(one in text for one in PERMANENT_FAILURES)
    return LoadFailed(
        f"llama-server {exit_text(exit_code)}"
        + (f": {complaint.strip()[:MAX_COMPLAINT_CHARS]}" if complaint else ""),
        is_port=is_port,
        can_retry=is_port or not is_permanent,
    )


def failure_of_command(program: str, exit_code: int, tail: Sequence[str]) -> LoadFailed:
    """Say why the command of a model exited before it was ready, with the last line that it wrote.

    Args:
        program: Its name.
        exit_code: Its exit code, or minus the signal that ended it.
        tail: The last lines of its log.
    """
    text = "\n".join(tail).lower()
    last = next((line.strip() for line in reversed(tail) if line.strip()), "")
    is_port = any(one in text for one in PORT_TAKEN)
    return LoadFailed(
        f"{program} {exit_text(exit_code)}" + (f": {last[:MAX_COMPLAINT_CHARS]}" if last else ""),
        is_port=is_port,
        can_retry=exit_code not in NOT_STARTED,
    )


def exit_text(exit_code: int) -> str:
    """Say how a process exited."""
    if exit_code < 0:
        return f"was killed by signal {-exit_code}"
    return f"exited with code {exit_code}"
