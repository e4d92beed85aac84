"""Objects of the appliance as messages."""

import pytest

from appliance.base.watch import Watched
from appliance.control.convert.status import (
    to_appliance_state,
    to_gpu,
    to_nat,
    to_status,
    to_step,
    to_timestamp,
    to_worker,
    to_worker_state,
)
from appliance.control.v1 import control_pb2 as pb
from appliance.host.worker.worker import WorkerStatus


def test_an_empty_status_is_converted() -> None:
    assert to_status({}) == pb.Status(gpu=pb.Gpu(), worker=pb.Worker(state=pb.WORKER_STATE_OFF), nat=pb.Nat())


@pytest.mark.parametrize("word", ["starting", "serving", "draining", "stopping"])
def test_each_state_has_its_value(word: str) -> None:
    assert pb.ApplianceState.Name(to_appliance_state(word)) == f"APPLIANCE_STATE_{word.upper()}"


@pytest.mark.parametrize(
    "word",
    ["off", "waiting", "running", "backing_off", "stopping", "stopped", "exited", "failed", "refused"],
)
def test_each_worker_state_has_its_value(word: str) -> None:
    assert word in (WorkerStatus.__doc__ or "")
    assert pb.WorkerState.Name(to_worker_state(word)) == f"WORKER_STATE_{word.upper()}"


@pytest.mark.parametrize("word", ["real", "simulated", "none"])
def test_each_mode_of_the_gpu_has_its_value(word: str) -> None:
    message = to_gpu({"mode": word})
    assert (message.mode, pb.GpuMode.Name(message.mode_kind)) == (word, f"GPU_MODE_{word.upper()}")


@pytest.mark.parametrize("word", ["rule", "listener", "off", "failed"])
def test_each_outcome_of_the_redirect_has_its_value(word: str) -> None:
    message = to_nat({"outcome": word})
    assert (message.outcome, pb.NatOutcome.Name(message.outcome_kind)) == (
        word,
        f"NAT_OUTCOME_{word.upper()}",
    )


@pytest.mark.parametrize("word", ["done", "skipped", "failed"])
def test_each_outcome_of_a_step_has_its_value(word: str) -> None:
    message = to_step({"name": "nat", "outcome": word})
    assert (message.outcome, pb.StepOutcome.Name(message.outcome_kind)) == (
        word,
        f"STEP_OUTCOME_{word.upper()}",
    )


def test_an_unknown_word_is_unspecified() -> None:
    assert to_gpu({"mode": "dancing"}).mode_kind == 0
    assert to_appliance_state("dancing") == 0
    assert to_worker_state("") == 0


def test_a_worker_that_never_ran_has_no_pid_no_code_and_no_time() -> None:
    worker = to_worker(Watched({"state": "off", "pid": None, "exit_code": None, "started_at_s": None}).value)
    assert [worker.HasField(name) for name in ("pid", "exit_code", "started_at")] == [False, False, False]


def test_an_exit_code_of_zero_is_sent() -> None:
    assert to_worker({"state": "exited", "exit_code": 0}).HasField("exit_code")


def test_numbers_where_text_is_wanted_become_text() -> None:
    assert to_gpu({"mode": "real", "gpus": [{"index": 0, "driver": 590}]}).gpus[0].driver == "590"


@pytest.mark.parametrize(
    ("at_s", "expected"),
    [(0.0, (0, 0)), (1.5, (1, 500_000_000)), (1_800_000_000.25, (1_800_000_000, 250_000_000))],
)
def test_times_keep_their_fraction(at_s: float, expected: tuple[int, int]) -> None:
    stamp = to_timestamp(at_s)
    assert stamp is not None
    assert (stamp.seconds, stamp.nanos) == expected
