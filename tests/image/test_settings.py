"""Bad settings stop it before anything happens; secrets stay secret; any other command is simply run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.box import BARE, HARDENED, Box, docker

KEY = "sk-image-test-0123456789abcdef"


@pytest.mark.parametrize("flags", [HARDENED, [*BARE, "--user", "12345:12345"]], ids=["root", "any user"])
def test_every_bad_setting_is_named_and_it_exits_with_78(image: str, flags: list[str]) -> None:
    done = docker(
        "run",
        "--rm",
        *flags,
        "-e",
        "PROXY_PORT=99999",
        "-e",
        "STREAM_CHUNK_SIZE=zero",
        "-e",
        "GPU_MODE=fast",
        "-e",
        "APPLIANCE_API_KEY=a-key-of-some-length",
        image,
        is_checked=False,
    )
    assert done.returncode == 78
    for words in (
        "PROXY_PORT=99999",
        "from 1 to 65535",
        "STREAM_CHUNK_SIZE=zero",
        "GPU_MODE=fast",
        "simulated",
        "Did you mean APPLIANCE_API_KEYS?",
    ):
        assert words in done.stderr
    assert "a-key-of-some-length" not in done.stdout + done.stderr
    assert "prepare:" not in done.stderr


@pytest.fixture
def secrets(image: str, volume: str) -> str:
    """A volume with a secret that everybody may read, and one that only root may."""
    docker(
        "run",
        "--rm",
        "-i",
        "-v",
        f"{volume}:/v",
        "--entrypoint",
        "sh",
        image,
        "-c",
        "cat >/v/key && cp /v/key /v/root-only && chmod 444 /v/key && chmod 400 /v/root-only",
        text=KEY + "\n",
    )
    return volume


def test_a_mounted_secret_is_used_and_shows_nowhere(start: Callable[..., Box], secrets: str) -> None:
    box = start(
        *HARDENED,
        "-v",
        f"{secrets}:/secrets:ro",
        "-e",
        "NOVITA_API_KEY_FILE=/secrets/key",
        "-e",
        "NOVITA_OPENAI_ENDPOINTS=http://127.0.0.1:9/v1",
    ).wait_health()
    assert box.ask("GET", "/healthz").json["demo"] is False
    reply = box.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert reply.status == 502
    seen = [
        reply.text,
        str(reply.headers),
        box.ask("GET", "/healthz").text,
        box.ask("GET", "/metrics").text,
        box.logs(),
        str(box.inspect()),
        str(box.processes()),
        box.run("python3", "-m", "appliance", "settings").stdout,
        box.run("python3", "-m", "appliance", "ctl", "--json", "settings").stdout,
        box.run(
            "sh", "-c", "cat /proc/1/environ /run/appliance/* /var/lib/appliance/* 2>/dev/null; true"
        ).stdout,
    ]
    assert not [text for text in seen if KEY in text]


def test_a_secret_that_the_service_may_not_read_is_refused_by_name(image: str, secrets: str) -> None:
    done = docker(
        "run",
        "--rm",
        *HARDENED,
        "-v",
        f"{secrets}:/secrets:ro",
        "-e",
        "NOVITA_API_KEY_FILE=/secrets/root-only",
        image,
        is_checked=False,
    )
    assert done.returncode == 78
    assert "NOVITA_API_KEY_FILE=/secrets/root-only" in done.stderr
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["sh", "-c", "echo other; exit 7"], 7, "other"),
        (["python3", "-c", "print(1 + 1)"], 0, "2"),
        (["check"], 0, "The settings are fine."),
        (["--help"], 0, "usage: appliance VERB"),
        (["healthcheck"], 1, "unhealthy"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_verb_or_any_other_command_is_run(image: str, command: list[str], code: int, words: str) -> None:
    done = docker("run", "--rm", *HARDENED, image, *command, is_checked=False)
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_the_version_is_the_packages_and_the_labels(image: str) -> None:
    version = docker("run", "--rm", image, "version").stdout.strip()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{version}"' in project
    labels = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.licenses"] == "MIT"


def test_check_is_run_as_it_is(image: str) -> None:
    assert "The settings are fine." in docker("run", "--rm", image, "check").stderr
