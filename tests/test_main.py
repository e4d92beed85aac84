"""The command line: verbs, wrong arguments, the health check."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance.__main__ import RUN, main
from appliance.command_lines import VERBS


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "appliance: unknown verb 'nonsense'.\n\nusage: appliance VERB"),
        (["chekc"], "appliance: unknown verb 'chekc'. Did you mean 'check'?\n\nusage: appliance VERB"),
        (["check", "more"], "usage: appliance check [-h] [--json]\n"),
        (["serve", "--port", "1"], "usage: appliance serve [-h]\n"),
        ([], "usage: appliance VERB"),
        (["settings", "--what"], "usage: appliance settings [-h]\n"),
        (["routes", "--what"], "usage: appliance routes [-h] [--markdown]\n"),
        (["models", "check", "--what"], "usage: appliance models check [-h] [--json]\n"),
        (["models", "schema", "--what"], "usage: appliance models schema [-h]\n"),
        (["healthcheck", "--what"], "usage: appliance healthcheck [-h]\n"),
        (["--show-completion", "csh"], "error: --show-completion: give the shell: bash, fish, zsh; 'csh'"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(text)
    assert said.out == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--help"], "usage: appliance VERB"),
        (["-h"], "usage: appliance VERB"),
        (["help", "me"], "usage: appliance VERB"),
        (["help", "check"], "usage: appliance check"),
        (["--version"], "0."),
        (["settings", "--markdown"], "# Configuration"),
        (["settings", "--env-example"], "#PROXY_PORT=14000"),
        (["settings", "--compose"], "- NOVITA_API_KEY_FILE\n"),
        (["models", "schema"], '"$schema"'),
    ],
)
def test_verbs_that_only_print_do_so(capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert main(words) == 0
    assert text in capsys.readouterr().out


def test_the_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    usage = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n  {verb} " not in usage] == []
    in_usage = {verb for verb in RUN if not verb.startswith("-")} - {"help"}
    assert in_usage == {name for name in VERBS if " " not in name}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr()
    assert f"usage: appliance {verb}" in said.out.replace("Usage", "usage")
    assert said.err == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ctl", "nonsense"], "There is: status, identity, "),
        (["ctl", "statsu"], "Did you mean 'status'? There is: "),
        (["ctl", "worker", "x"], "There is: show, start, stop, restart."),
        (["models", "x"], "There is: list, show, "),
    ],
)
def test_an_unknown_command_is_told_what_there_is(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(words) == 2
    plain = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert text in plain


@pytest.mark.parametrize(
    ("environ", "code", "severities"),
    [
        ({"PROXY_HOST": "127.0.0.1"}, 0, []),
        ({"PROXY_HOST": "0.0.0.0"}, 0, ["warning"]),
        ({"PROXY_PORT": "x", "PROXY_HOST": "0.0.0.0"}, 78, ["error"]),
    ],
)
def test_check_for_programs_says_what_it_says_to_people(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    code: int,
    severities: list[str],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["check"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert main(["check", "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is (code == 0)
    assert [problem["severity"] for problem in value["problems"]] == severities
    for problem in value["problems"]:
        assert list(problem) == ["severity", "variable", "value", "allowed", "remedy", "text"]
        assert f"{problem['severity']}: {problem['text']}\n" in said.err


# ---- healthcheck


class Answers(BaseHTTPRequestHandler):
    """Serves the page that the test has set."""

    page: tuple[int, bytes] = (200, b"{}")

    def do_GET(self) -> None:
        status, body = self.page
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """A server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("status", "value", "code", "text"),
    [
        (200, {"state": "serving"}, 0, "healthy: serving\n"),
        (503, {"state": "draining"}, 1, "unhealthy: draining\n"),
        (200, {}, 0, "healthy: ?\n"),
    ],
)
def test_the_servers_state_decides(
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
    value: Any,
    code: int,
    text: str,
) -> None:
    monkeypatch.setenv("PROXY_PORT", str(port))
    monkeypatch.setenv("PROXY_HOST", "0.0.0.0")
    monkeypatch.setattr(Answers, "page", (status, json.dumps(value).encode()))
    assert main(["healthcheck"]) == code
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("body", [b"[]", b"no json"])
def test_a_response_that_is_not_an_object_is_unhealthy(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    monkeypatch.setenv("PORT", str(port))
    monkeypatch.delenv("PROXY_PORT", raising=False)
    monkeypatch.setattr(Answers, "page", (200, body))
    assert main(["healthcheck"]) == 1
    assert capsys.readouterr().err.startswith(f"unhealthy: 127.0.0.1:{port} does not answer: ")


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        ({"service": "runtime", "status": "healthy"}, 0, "healthy: sidecar, healthy"),
        ({"service": "another"}, 1, "unhealthy: 127.0.0.1:"),
    ],
)
def test_without_a_server_a_sidecar_is_asked(
    port: int,
    closed_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: Any,
    code: int,
    text: str,
) -> None:
    monkeypatch.setenv("PROXY_PORT", str(closed_port))
    monkeypatch.setenv("SIDECAR_PORT", str(port))
    monkeypatch.setattr(Answers, "page", (200, json.dumps(value).encode()))
    assert main(["healthcheck"]) == code
    said = capsys.readouterr()
    assert (said.out + said.err).startswith(text)


def test_where_nothing_listens_it_is_unhealthy(
    closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROXY_PORT", str(closed_port))
    monkeypatch.setenv("SIDECAR_PORT", str(closed_port))
    assert main(["healthcheck"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def check_table(
    program: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, str]]:
    """Check a table in which two models have arguments of their own; give the problems of the table."""
    (folder / "a.gguf").write_bytes(b"GGUF")
    models = {
        "wrong": {"model_path": "a.gguf", "extra_args": ["--threads-batch", 2, "--no_warmupp", "--zzz=1"]},
        "right": {"model_path": "a.gguf", "extra_args": ["--no-warmup", "-tb", "2"]},
        "other": {"command": ["sh", "-c", "exec x --nothing ${PORT}"]},
    }
    (folder / "c.json").write_text(json.dumps({"models": models}))
    monkeypatch.setenv("CONFIG_PATH", str(folder / "c.json"))
    monkeypatch.setenv("LLAMA_SERVER_PATH", program)
    monkeypatch.setenv("STATE_DIR", str(folder / "state"))
    capsys.readouterr()
    assert main(["check", "--json"]) == 0
    return [one for one in json.loads(capsys.readouterr().out)["problems"] if "extra_args" in one["text"]]


def test_check_names_arguments_that_the_llama_server_does_not_have(
    llama_binary: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = check_table(llama_binary, tmp_path, capsys, monkeypatch)
    assert (first["severity"], second["severity"]) == ("warning", "warning")
    assert "models.wrong.extra_args.2" in first["text"]
    assert (
        "does not have --no-warmupp: the model cannot be loaded. Did you mean --no-warmup?" in first["text"]
    )
    assert "models.wrong.extra_args.3" in second["text"]
    assert (
        "does not have --zzz: the model cannot be loaded. Install a newer one, or remove it."
        in second["text"]
    )


def test_check_says_that_arguments_cannot_be_looked_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = check_table("/bin/true", tmp_path, capsys, monkeypatch)
    assert "`extra_args` of wrong, right cannot be checked: `/bin/true --help` is not that" in problem["text"]
