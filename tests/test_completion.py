"""Completion: what fits what was typed, and the scripts that ask for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["se"], ["serve", "settings"]),
        (["models", ""], ["list", "load", "check", "schema"]),
        (["ctl", "wor"], ["worker"]),
        (["ctl", "worker", "st"], ["start", "stop"]),
        (["ctl", "lora", ""], ["list", "load", "unload"]),
        (["ctl", "status", "--w"], ["--watch"]),
        (["check", "--"], ["--json", "--help"]),
        (["settings", "--m"], ["--markdown"]),
        (["sidecar", "-E", "s"], ["sglang"]),
        (["download", "--re"], ["--repair"]),
        (["use"], ["users"]),
        (["users", ""], ["list", "create", "deactivate"]),
        (["nonsense", ""], []),
    ],
)
def test_it_offers_verbs_commands_options_and_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], some: list[str]
) -> None:
    monkeypatch.setenv("_APPLIANCE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["appliance", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    main([])
    offered = capsys.readouterr().out.split()
    assert set(some) <= set(offered)
    assert [word for word in offered if not word.startswith(words[-1])] == []


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    command = tmp_path / "appliance"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m appliance "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(appliance --show-completion bash)"; COMP_WORDS=(appliance ctl wor); COMP_CWORD=2; '
        '_appliance_completion appliance wor ctl; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "worker\n", done.stderr


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", ".bash_completions/appliance.sh"),
        ("zsh", ".zfunc/_appliance"),
        ("fish", ".config/fish/completions/appliance.fish"),
    ],
)
def test_it_is_installed_for_a_shell(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shell: str,
    path: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", shell]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / path} is written; {shell} completes")
    assert main(["--show-completion", shell]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / path).read_text().strip()


def test_an_unknown_shell_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.completion.find_shell", lambda: "")
    assert main(["--install-completion"]) == 2
    assert capsys.readouterr().err == (
        "error: --install-completion: give the shell: bash, fish, zsh; it could not be detected.\n"
    )
