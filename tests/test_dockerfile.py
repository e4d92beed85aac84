"""The Dockerfile's rules that no linter knows: it builds with any engine, from the locks alone, and says the right version."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
STEPS = re.sub(
    r"\\\n\s*", " ", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
).splitlines()


def test_it_asks_for_no_frontend_and_nothing_that_only_some_builders_know() -> None:
    assert not re.search(r"^#\s*syntax", TEXT, re.MULTILINE)
    assert not re.search(r"--(mount|link|chmod|network|security|start-interval)\b|<<", "\n".join(STEPS))


def test_all_stages_stand_on_the_same_base_and_the_appliance_is_the_last() -> None:
    stages = [step.split()[1:] for step in STEPS if step.startswith("FROM ")]
    assert {stage[0] for stage in stages} == {"python:3.13-slim-trixie"}
    # Kthena runtime's command names the last one: --target runtime
    assert [stage[2:] for stage in stages] == [["build"], ["llama"], ["llama-server"], ["runtime"]]


def test_every_package_is_installed_from_a_lock_with_hashes() -> None:
    installs = [part for step in STEPS for part in step.split("&&") if re.search(r"pip\b.* install ", part)]
    (own,) = [part for part in installs if part.rstrip().endswith(".whl")]
    assert "--no-deps --no-index" in own
    installs.remove(own)
    assert len(installs) == 3
    for part in installs:
        assert "--require-hashes" in part
        assert "--only-binary :all:" in part
        assert part.rstrip().endswith(".lock")


def test_what_is_copied_is_let_through_and_nothing_else_is() -> None:
    copied = {
        source
        for step in STEPS
        if step.startswith("COPY ") and "--from" not in step
        for source in step.split()[1:-1]
    }
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {
        source.partition("/")[0] if source.partition("/")[0] in let else source for source in copied
    } == let


def test_the_version_is_the_packages() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"ARG VERSION={version[1]}\n" in TEXT


def test_the_user_is_the_one_that_the_entrypoint_becomes() -> None:
    user = re.search(r"^readonly SERVICE_USER=(\d+)", (ROOT / "entrypoint.sh").read_text(), re.MULTILINE)
    assert user is not None
    assert f"--uid {user[1]} --gid {user[1]}" in TEXT


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_names_no_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text


def test_the_builders_are_found_in_the_development_lock_with_its_hashes() -> None:
    for name in ("Dockerfile", "Makefile"):
        assert (
            "awk '/^[^ #]/ {on = /^(grpcio-tools|setuptools)==/} on' requirements-dev.lock"
            in (ROOT / name).read_text()
        )
    cut = subprocess.run(
        ["awk", "/^[^ #]/ {on = /^(grpcio-tools|setuptools)==/} on", "requirements-dev.lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.partition("==")[0] for line in cut if "==" in line] == ["grpcio-tools", "setuptools"]
    assert "--hash=sha256:" in cut[1]
