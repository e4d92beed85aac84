"""The machine's steps: what they leave, what is believed of it, and which failure stops the start."""

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from appliance.host import prepare
from appliance.host.settings import HostSettings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "RUN_FILES", (tmp_path / "run" / "prepare.json",))

    def make(**variables: str) -> HostSettings:
        return HostSettings.from_env(
            {
                "STATE_DIR": str(tmp_path / "state"),
                "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
                "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
                "NAT_REDIRECT": "off",
                **variables,
            }
        )

    return make


def test_each_step_reports_its_result(settings, capsys) -> None:
    steps = prepare.run_prepare(settings(GPU_MODE="simulated"), proxy_port=14000, environ={})
    assert [(s.name, s.outcome) for s in steps] == [
        ("machine-id", "done"),
        ("gpu", "done"),
        ("shim", "done"),
        ("nat", "skipped"),
    ]
    assert "prepare: gpu: done: GPU_MODE=simulated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (
            errno.ENOSPC,
            "It will change at the next start. The disk is full: free some space. STATE_DIR is {state}.",
        ),
        (
            errno.EROFS,
            "It will change at the next start. The file system is read-only: mount it writable. STATE_DIR is {state}.",
        ),
        (errno.EACCES, "It will change at the next start: make {state} (STATE_DIR) writable."),
    ],
)
def test_a_machine_id_that_cannot_be_kept_says_why(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    step = prepare.prepare_machine(settings(GPU_MODE="none"), proxy_port=14000, environ={}).steps[0]
    assert (step.name, step.outcome) == ("machine-id", "skipped")
    assert step.remedy == remedy.format(state=tmp_path / "state")


def test_serve_uses_results_of_this_run_only(settings, tmp_path: Path) -> None:
    prepare.run_prepare(settings(GPU_MODE="simulated"), proxy_port=14000, environ={})
    assert prepare.load_or_prepare(settings(), proxy_port=14000, environ={}).gpu["mode"] == "simulated"
    assert (
        prepare.load_or_prepare(settings(GPU_MODE="none"), proxy_port=15000, environ={}).gpu["mode"] == "none"
    )
    path = tmp_path / "run" / "prepare.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": "another"}))
    assert (
        prepare.load_or_prepare(settings(GPU_MODE="none"), proxy_port=14000, environ={}).gpu["mode"] == "none"
    )
    path.write_text("{ rubbish")
    assert (
        prepare.load_or_prepare(settings(GPU_MODE="none"), proxy_port=14000, environ={}).gpu["mode"] == "none"
    )


def test_missing_real_gpu_stops_the_start(settings) -> None:
    prepared = prepare.prepare_machine(settings(GPU_MODE="real"), proxy_port=14000, environ={})
    if prepared.gpu["mode"] == "real":
        pytest.skip("this machine has a GPU")
    assert [s.name for s in prepared.failures] == ["gpu"]
    assert "--gpus all" in prepared.failures[0].remedy
