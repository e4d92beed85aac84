"""The command line, exit codes, refusals, and what must not be shown."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.gpuproxy_client.program import COMMANDS, main, usage
from tests.gpuproxy_client.conftest import ClientShell
from tests.redis_server import closed_port

KEY = "apk_a-key-that-must-not-be-shown"
STRATEGY = "GET /api/v1/loadbalancer/strategy"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_usage(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: aiserve-gpuproxy-client {name}")
    assert f"\n  {name} " in usage() or f"\n  {name}\n" in usage()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "GPU Proxy Client"),
        (["fly"], "Unknown command: fly"),
        (["-fly", "list"], "flag provided but not defined: -fly"),
        (["list", "-fly"], "flag provided but not defined: -fly"),
        (["-api"], "flag needs an argument: -api"),
        (["-json=x", "list"], "invalid boolean value 'x' for -json"),
        (["create", "vast.ai"], "words are missing\nUsage: aiserve-gpuproxy-client create <provider> <id>"),
        (["destroy"], "words are missing"),
        (["list", "vast.ai", "-json"], "there are too many words; flags come first"),
        (["login", "a@example.org"], "there is no password on standard input"),
        (["reserve", "-min-vram", "much", "1"], "'much' is no number from 0"),
        (["reserve", "-max-price", "nan", "1"], "'nan' is no number from 0"),
    ],
)
def test_wrong_usage_ends_with_2(shell: ClientShell, words: list[str], text: str) -> None:
    shell._monkeypatch.setattr(sys, "stdin", sys.__stdin__)
    assert shell.run(*words) == 2
    assert text in shell.err
    assert shell.server.asked == []


@pytest.mark.parametrize(
    "words", [["--json", "lb-strategy"], ["lb-strategy", "-json"], ["-json=true", "lb-strategy"]]
)
def test_flags_have_one_dash_or_two_on_either_side(shell: ClientShell, words: list[str]) -> None:
    shell.server.on(STRATEGY, {"strategy": "round_robin"})
    assert shell.done(*words) == '{\n  "strategy": "round_robin"\n}\n'


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (402, {"error": "Your credits are used up.", "code": "x"}, "Your credits are used up."),
        (
            403,
            {"error": {"message": "an operator's key is needed", "code": "x"}},
            "an operator's key is needed",
        ),
        (500, b"<html>", "The appliance refused it with status 500."),
        (429, {}, "The appliance refused it with status 429."),
        (401, {"error": "Unknown key."}, "Unknown key. Give a key by -key or GPUPROXY_API_KEY"),
        (302, b"", "The address leads elsewhere (status 302)"),
        (404, {"error": "a\x1b[2Jb" + "x" * 9000}, "ab"),
    ],
)
def test_refusals_end_with_1_and_one_sentence(
    shell: ClientShell, status: int, body: object, text: str
) -> None:
    shell.server.headers = {"Location": "http://127.0.0.1:1/"}
    shell.server.on(STRATEGY, body, status=status)
    assert shell.run("lb-strategy") == 1
    assert shell.err.startswith("error: ")
    assert text in shell.err
    assert "\x1b" not in shell.err
    assert len(shell.err) < 2200
    assert (shell.out, len(shell.server.asked)) == ("", 1)


def test_what_cannot_be_reached_ends_with_3(shell: ClientShell) -> None:
    shell.server.url = f"http://127.0.0.1:{closed_port()}"
    assert shell.run("list") == 3
    assert f"No appliance responds at {shell.server.url}: Connection refused" in shell.err


@pytest.mark.parametrize("answer", [None, b"<html>it works</html>", b"[]", b""])
def test_what_is_no_appliance_ends_with_3(shell: ClientShell, answer: bytes | None) -> None:
    shell.server.on(STRATEGY, answer)
    assert shell.run("lb-strategy") == 3


@pytest.mark.parametrize(
    "address", ["localhost:8080", "ftp://a", "http://", "http://user:pw@a", "http://a:x", "http://a?k=1"]
)
def test_addresses_that_are_none_end_with_3(shell: ClientShell, address: str) -> None:
    shell.server.url = address
    assert shell.run("list") == 3
    assert "The address of -api must be one such as" in shell.err
    assert "pw" not in shell.err


def test_a_proxy_of_the_environment_never_gets_loopback(
    shell: ClientShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    shell.server.on(STRATEGY, {"strategy": "round_robin"})
    shell.done("lb-strategy")


def test_debug_mode_shows_requests_without_the_key(shell: ClientShell) -> None:
    shell.server.on(STRATEGY, {"strategy": "round_robin"})
    shell.server.headers = {"X-Request-ID": "req_7"}
    shell.done("-dm", "-dv", "-key", KEY, "lb-strategy")
    assert "GET /api/v1/loadbalancer/strategy -> 200, " in shell.err
    assert "req_7" in shell.err
    assert KEY not in shell.err + shell.out


@pytest.mark.parametrize("key", ["two words", "a\nb", "schlüssel"])
def test_keys_that_cannot_be_sent_are_refused_unseen(shell: ClientShell, key: str) -> None:
    assert shell.run("-key", key, "list") == 1
    assert "The key has signs that no key has" in shell.err
    assert key not in shell.err
    assert shell.server.asked == []


@pytest.mark.parametrize("words", [["-key", KEY], [f"--key={KEY}"]])
def test_a_key_leaves_the_list_of_processes(shell: ClientShell, words: list[str]) -> None:
    shell.server.on("GET /polling", {"events": [], "next": 1})
    script = "import sys; from appliance.gpuproxy_client.program import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "-api", shell.server.url, *words, "events"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline_s = time.monotonic() + 30
        while len(shell.server.asked) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert shell.server.asked[0].headers["x-api-key"] == KEY
    finally:
        process.kill()
        process.communicate()


def test_nothing_of_the_server_is_imported() -> None:
    script = (
        "import sys, appliance.gpuproxy_client.program\n"
        "print([name for name in sys.modules if name.startswith(('grpc', 'sqlalchemy', 'aiohttp', 'appliance.accounts',"
        " 'appliance.market', 'appliance.front', 'appliance.engines', 'appliance.storage', 'appliance.control'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
