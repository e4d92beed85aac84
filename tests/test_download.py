"""`appliance download`: its arguments, and what it prints; the process itself is in journeys/test_download.py."""

import io
import sys
from pathlib import Path

import pytest

from appliance.base import jsons
from appliance.download import main
from appliance.download_output import render_faults, render_line, size
from appliance.downloads.contract import DownloadProgress, FileFault


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "Give a SOURCE, or a folder to --verify or --repair (-o)."),
        (["ns/repo", "-c", "{"], 2, "The value of -c is not JSON."),
        (["ns/repo", "-c", "[1]"], 2, "The value of -c must be a JSON object of texts."),
        (["ns/repo", "-c", '{"a": [1]}'], 2, "The value of -c must be a JSON object of texts."),
        (["ns/repo", "-c", "@/no/such/file"], 2, "The file of -c cannot be read: No such file or directory."),
        (["x://y"], 2, "Unknown source x://."),
        (["ns/repo", "-w", "0"], 2, "`max_workers` must be from 1 to 64."),
    ],
)
@pytest.mark.parametrize("is_json", [False, True])
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    text: str,
    is_json: bool,
) -> None:
    assert main([*arguments, "-o", str(tmp_path), *(["--json"] if is_json else [])]) == code
    out, err = capsys.readouterr()
    if is_json:
        last = jsons.loads(out.splitlines()[-1].encode())
        assert (last["status"], last["error"]["kind"], text in last["error"]["message"]) == (
            "failed",
            "invalid",
            True,
        )
    else:
        assert f"error: {text}" in err


def test_settings_that_cannot_be_used_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOWNLOAD_JOBS", "0")
    assert main(["ns/repo"]) == 78
    assert capsys.readouterr().err.startswith("error: DOWNLOAD_JOBS=0: allowed: a whole number from 1 to 32.")


def test_config_comes_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"revison": "main"}'))
    assert main(["ns/repo", "-c", "-", "-o", str(tmp_path)]) == 2
    assert "Unknown config key 'revison'. Did you mean revision?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3e13, "30.0 TB")],
)
def test_sizes_have_units(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (DownloadProgress(), "listing"),
        (DownloadProgress(phase="waiting", note="process 7"), "waiting: process 7"),
        (
            DownloadProgress(
                phase="fetching",
                files=2,
                files_done=1,
                total_bytes=200,
                done_bytes=50,
                rate_bytes_s=10.0,
                note="again",
            ),
            "fetching: 1 of 2 files, 50 bytes of 200 bytes (25%), 10 bytes/s; again",
        ),
        (DownloadProgress(phase="fetching", files=1), "fetching: 0 of 1 file, 0 bytes"),
    ],
)
def test_progress_is_one_line(progress: DownloadProgress, line: str) -> None:
    assert render_line(progress) == line


def test_faults_are_a_table() -> None:
    assert render_faults([FileFault("a", "missing", "the file does not exist")]) == [
        "missing   a: the file does not exist"
    ]
