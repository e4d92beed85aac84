"""`appliance support`: what is in the bundle, and that no secret is."""

import asyncio
import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.__main__ import main
from appliance.base.logs import get_logger
from appliance.support import collect, receipt_head
from appliance.support_bundle import Redactor, SupportBundle
from tests.journeys.running import Start, free_port, start  # noqa: F401 - a fixture

SECRETS = {
    "client": "client-key-plain-words",
    "operator": "operator-key-plain-words",
    "token": "control-token-plain-words",
    "backend": "backend-key-plain-words",
    "novita": "novita-key-plain-words",
    "hf": "hub-token-plain-words",
    "other": "unknown-variable-plain-words",
    "file": "content-of-a-secret-file",
    "proxy": "proxy-password-plain-words",
}


def files_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(member.isfile() and member.mode == 0o600 for member in members)
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
        return found


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a secret wherever there can be one."""
    config, env_file, secret_file = tmp_path / "config.json", tmp_path / "env", tmp_path / "secret"
    backend = {"url": f"http://127.0.0.1:{free_port()}", "name": "llm-1", "api_key": SECRETS["backend"]}
    config.write_text(json.dumps({"backends": [backend]}))
    env_file.write_text(f"NOVITA_API_KEY={SECRETS['novita']}\n")
    secret_file.write_text(SECRETS["file"] + "\n")
    return {
        "CONFIG_PATH": str(config),
        "APPLIANCE_ENV_FILE": str(env_file),
        "APPLIANCE_API_KEYS": f"{SECRETS['client']},another-client-key",
        "OPERATOR_API_KEYS": SECRETS["operator"],
        "CONTROL_TOKEN": SECRETS["token"],
        "HF_TOKEN": SECRETS["hf"],
        "SOME_SERVICE_API_KEY": SECRETS["other"],
        "THAT_PASSWORD_FILE": str(secret_file),
        "HTTPS_PROXY": f"http://user:{SECRETS['proxy']}@127.0.0.1:9",
        "MODEL_STRICT": "1",
    }


async def test_no_secret_is_in_the_bundle(start: Start, environ: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    running = await start(**environ)
    for name, secret in SECRETS.items():
        get_logger("test").info("planted", name=name, text=f"it is {secret}", command=f"--api-key {secret}")
        running.appliance.lines.add(0.0, "worker.stdout", f"\x1b[31m{secret} http://u:{secret}@h/")
    async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
        for secret in SECRETS.values():
            await http.post(
                f"/v1/chat/completions?token={secret}",
                json={"model": secret, "messages": [{"role": "user", "content": "a private prompt"}]},
                headers={"authorization": f"Bearer {SECRETS['client']}"},
            )
    variables = {
        **environ,
        "CONTROL_ADDRESS": running.control_address,
        "PROXY_PORT": running.base_url.rpartition(":")[2],
        "STATE_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    bundle = await asyncio.to_thread(collect, variables, folder="support", now_s=1_800_000_000.0)
    path = tmp_path / "bundle.tar.gz"
    bundle.write(path, made_at_s=1_800_000_000.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = files_of(path)
    assert bundle.missing == {}
    assert set(files) == {
        *("settings.json", "versions.json", "host.json", "status.json", "settings-in-force.json"),
        *("models.json", "receipts.json", "log.txt", "metrics.txt", "manifest.json"),
    }
    leaks = [
        (name, what)
        for name, data in files.items()
        for what, text in SECRETS.items()
        if text.encode() in data
    ]
    assert leaks == []
    assert not any(b"a private prompt" in data for data in files.values())
    receipts: Any = json.loads(files["receipts.json"])
    assert len(receipts) == len(SECRETS)
    assert receipts[0]["status"] == 503
    assert b"appliance_requests_total" in files["metrics.txt"]
    assert b"planted" in files["log.txt"]
    assert json.loads(files["status.json"])["status"]["version"]


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    variables = {"CONTROL_ADDRESS": f"unix:{tmp_path}/none", "PROXY_PORT": str(free_port()), "PATH": "/none"}
    bundle = collect(variables, folder="support", now_s=0.0)
    assert set(bundle.missing) == {
        *("status.json", "settings-in-force.json", "models.json", "receipts.json", "log.txt", "metrics.txt")
    }
    bundle.write(tmp_path / "bundle", made_at_s=0.0)
    files = files_of(tmp_path / "bundle")
    assert json.loads(files["manifest.json"])["left_out"] == bundle.missing
    assert json.loads(files["versions.json"])["llama-server"] == "not installed"


def test_invalid_settings_are_told_in_the_bundle(tmp_path: Path) -> None:
    bundle = collect(
        {"PROXY_PORT": "x", "PATH": "/none", "CONTROL_ADDRESS": "unix:/none"}, folder="s", now_s=0.0
    )
    bundle.write(tmp_path / "bundle", made_at_s=0.0)
    (problem,) = json.loads(files_of(tmp_path / "bundle")["settings.json"])["problems"]
    assert problem.startswith("PROXY_PORT=x")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("http://u:p@host/x", "http://[secret]@host/x"),
        ("--api-key abc --threads 8", "--api-key [secret] --threads 8"),
        ("a known-secret b", "a [secret] b"),
        ("Bearer abcdefgh", "Bearer [secret]"),
        ("max_tokens=100 of 4096", "max_tokens=100 of 4096"),
    ],
)
def test_texts_are_redacted(text: str, redacted: str) -> None:
    redactor = Redactor()
    redactor.learn(["known-secret", "x"])
    assert redactor.text(text) == redacted


def test_fields_are_redacted_by_their_names() -> None:
    value = {"api_key": "abc", "token": ["short"], "key": "0123456789ab", "max_tokens": 5, "name": "abc"}
    assert Redactor().value(value) == {
        "api_key": "[secret]",
        "token": ["[secret]"],
        "key": "0123456789ab",
        "max_tokens": 5,
        "name": "abc",
    }


def test_a_bundle_with_a_secret_is_not_written(tmp_path: Path) -> None:
    redactor = Redactor()
    bundle = SupportBundle(redactor, "support")
    bundle.add_text("early.txt", "late-secret")
    redactor.learn(["late-secret"])
    with pytest.raises(ValueError, match=r"a secret is still in early\.txt"):
        bundle.write(tmp_path / "bundle", made_at_s=0.0)
    assert list(tmp_path.iterdir()) == []


def test_half_a_bundle_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", refuse)
    with pytest.raises(OSError, match="No space"):
        SupportBundle(Redactor(), "support").write(tmp_path / "bundle", made_at_s=0.0)
    assert list(tmp_path.iterdir()) == []


def test_the_head_of_a_receipt_has_no_words_of_a_server() -> None:
    receipt = {
        "id": "r",
        "error": "upstream: cannot read: my prompt",
        "attempts": [{"outcome": "ok", "note": "n"}],
    }
    assert receipt_head(receipt) == {"id": "r", "error_kind": "upstream", "attempts": ["ok"]}


def test_a_file_that_exists_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROL_ADDRESS", f"unix:{tmp_path}/none")
    monkeypatch.setenv("PROXY_PORT", str(free_port()))
    path = tmp_path / "bundle"
    assert main(["support", "-o", str(path)]) == 0
    assert "Look at it before you send it" in capsys.readouterr().out
    assert main(["support", "-o", str(path)]) == 1
    assert capsys.readouterr().err == f"support: {path} exists. Name a new file with -o.\n"
