"""The states of the process, and its stop."""

from appliance.lifecycle import Lifecycle


def states(*verbs: str) -> str:
    """Serve, call verbs, return the state."""
    lifecycle = Lifecycle([])
    lifecycle.set_state("serving")
    for verb in verbs:
        getattr(lifecycle, verb)()
    return lifecycle.state.value


def test_drain_and_resume_change_the_state_back_and_forth() -> None:
    assert states("drain") == "draining"
    assert states("drain", "drain") == "draining"
    assert states("drain", "resume") == "serving"
    assert states("resume") == "serving"


def test_a_stopping_appliance_is_not_drained_or_resumed() -> None:
    lifecycle = Lifecycle([])
    lifecycle.set_state("stopping")
    lifecycle.drain()
    lifecycle.resume()
    assert lifecycle.state.value == "stopping"
    assert not lifecycle.is_serving


def test_followers_of_the_status_get_each_change_once() -> None:
    lifecycle = Lifecycle([])
    lifecycle.set_state("serving")
    lifecycle.set_state("serving")
    assert lifecycle.changed.value == 1
    lifecycle.mark_changed()
    assert lifecycle.changed.value == 2


def test_the_second_stop_cuts_off_running_requests() -> None:
    lifecycle = Lifecycle([])
    lifecycle.shutdown(12.0)
    assert (lifecycle.stop_requested.is_set(), lifecycle.hurry.is_set(), lifecycle.grace_s) == (
        True,
        False,
        12.0,
    )
    lifecycle.shutdown()
    assert (lifecycle.hurry.is_set(), lifecycle.grace_s) == (True, None)


def test_a_task_that_dies_ends_the_process_with_an_error() -> None:
    lifecycle = Lifecycle(["first"])
    lifecycle.task_died("front-ticker", KeyError("x"))
    assert (lifecycle.exit_code, lifecycle.stop_requested.is_set()) == (1, True)
    assert lifecycle.warnings == ["first", "the background task front-ticker died: KeyError('x')"]


def test_a_warning_that_others_have_given_is_shown_once() -> None:
    lifecycle = Lifecycle(["at the start"])
    lifecycle.warnings += ["of a file", "of a task"]  # not from the settings
    lifecycle.warn_of_settings(["of a file", "new"])
    assert lifecycle.warnings == ["of a file", "new", "of a task"]
    lifecycle.warn_of_settings([])
    assert lifecycle.warnings == ["of a task"]
