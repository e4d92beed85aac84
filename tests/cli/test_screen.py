"""Output for people, programs and terminals."""

import io

import pytest

from appliance.cli.render import status as render
from appliance.cli.render.backends import backend_rows
from appliance.cli.render.values import duration, enum_word
from appliance.cli.screen import Screen, clean
from appliance.control.v1 import control_pb2 as pb


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_cannot_reach_a_terminal() -> None:
    assert clean("a\x1b[31mb\x07c\x9bd\re\tf\ng\x7f é 漢 🎉") == "abcde\tf\ng é 漢 🎉"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0s"), (7.84, "7.8s"), (65, "1m 5s"), (3_720, "1h 2m"), (100_000, "1d 3h")],
)
def test_durations_are_shown_in_fitting_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_enum_values_become_words() -> None:
    assert enum_word(pb.Status(state=pb.APPLIANCE_STATE_DRAINING), "state") == "draining"
    assert enum_word(pb.Worker(state=pb.WORKER_STATE_BACKING_OFF), "state") == "backing_off"
    assert enum_word(pb.Status(state=99), "state") == "unknown"  # of a newer appliance


def test_without_a_terminal_a_table_is_tab_separated_lines() -> None:
    out = io.StringIO()
    Screen(out=out).table(["A", "B"], [["1", "two\tand\nmore"]])
    assert out.getvalue() == "A\tB\n1\ttwo and more\n"


def test_on_a_terminal_a_table_keeps_what_looks_like_markup() -> None:
    out = Terminal()
    Screen(out=out).table(["A", "B"], [["[red]1[/red]", "a\x1b[31mb"]])
    assert "[red]1[/red]" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()


def test_pairs_without_a_value_are_left_out() -> None:
    for out in (io.StringIO(), Terminal()):
        Screen(out=out).pairs([("kept", "1"), ("empty", "")])
        assert "kept" in out.getvalue()
        assert "empty" not in out.getvalue()


def test_a_simulated_gpu_says_so_wherever_it_is_shown() -> None:
    gpu = pb.Gpu(
        mode="simulated", simulated=True, gpus=[pb.GpuCard(name="NVIDIA H100 (simulated)", uuid="GPU-1")]
    )
    assert "(simulated)" in render.gpu_text(gpu)
    assert "(simulated)" in dict(render.identity_pairs(pb.GetIdentityResponse(gpu=gpu)))["gpu 0"]


def test_failed_steps_and_warnings_are_shown() -> None:
    status = pb.Status(
        steps=[
            pb.Step(name="nat", outcome="failed", detail="no privilege.", remedy="--cap-add NET_ADMIN"),
            pb.Step(name="gpu", outcome="done"),
        ],
        warnings=["mind the gap"],
    )
    pairs = render.status_pairs(status)
    assert ("failed step", "nat: no privilege. --cap-add NET_ADMIN") in pairs
    assert ("warning", "mind the gap") in pairs
    assert not any("gpu: " in value for name, value in pairs if name == "failed step")


def test_a_backend_without_endpoints_still_has_its_row() -> None:
    rows = backend_rows(
        [
            pb.Backend(name="demo", kind="demo", is_up=True, detail="built in"),
            pb.Backend(name="one", detail="it refuses", endpoints=[pb.Endpoint(url="u")]),
            pb.Backend(name="hosted", endpoints=[pb.Endpoint(url="u", rested_s=3, last_error="connect")]),
        ]
    )
    assert rows == [
        ["demo", "demo", "up", "0", "", "", "built in"],
        ["one", "", "down", "0", "", "u", "it refuses"],
        ["hosted", "", "down", "0", "", "u", "retry in 3.0s; connect"],
    ]
