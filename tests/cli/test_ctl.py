"""`appliance ctl` against a real control API: every command, its JSON, its errors and exit codes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from appliance.base import jsons
from appliance.base.errors import UpstreamFailed
from appliance.cli import ctl
from appliance.cli.client import CallFailed
from appliance.control.server import serving_control
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipt
from tests.control.fake_appliance import FakeAppliance, control_settings, event, free_port

TOKEN = "a-long-random-token"


class Terminal:
    """Runs commands against one appliance."""

    def __init__(self, fake: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
        self.fake = fake
        self._capsys = capsys
        self.out = self.err = ""

    async def run(self, *arguments: str) -> int:
        """Run `appliance ctl` with `arguments`; keep what it wrote."""
        self._capsys.readouterr()
        code = await asyncio.to_thread(ctl.main, list(arguments))
        self.out, self.err = self._capsys.readouterr()
        return code

    async def json(self, *arguments: str) -> Any:
        assert await self.run(*arguments, "--json") == 0, self.err
        return jsons.loads(self.out)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the server's log off the screen that commands write to, and the environment out of the way."""
    monkeypatch.setattr("appliance.control.server.log", _Mute())
    monkeypatch.setattr("appliance.control.interceptor.log", _Mute())
    for name in ("CONTROL_ADDRESS", "CONTROL_TOKEN", "CONTROL_TOKEN_FILE", "CONTROL_PORT", "CONTROL_SOCKET"):
        monkeypatch.delenv(name, raising=False)


class _Mute:
    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
async def terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Terminal]:
    fake = FakeAppliance()
    path = tmp_path / "c.sock"
    monkeypatch.setenv("CONTROL_ADDRESS", f"unix:{path}")
    async with serving_control(control_settings(control_socket=path), fake.parts()):
        yield Terminal(fake, capsys)


# ---- every command


async def test_status(terminal: Terminal) -> None:
    assert await terminal.run("status") == 0
    lines = dict(line.split("\t") for line in terminal.out.splitlines())
    assert (lines["state"], lines["model"], lines["in flight"]) == ("serving", "house/model", "3")
    assert lines["gpu"] == "NVIDIA H100 (simulated) GPU-1"
    assert lines["warning"] == "something to know"
    assert (await terminal.json("status"))["state"] == "APPLIANCE_STATE_SERVING"


async def test_status_is_watched_until_the_appliance_stops(terminal: Terminal) -> None:
    async def stop() -> None:
        await asyncio.sleep(0.2)
        terminal.fake.become("stopping")

    code, _ = await asyncio.gather(terminal.run("status", "--watch", "--json"), stop())
    assert code == 0
    states = [jsons.loads(line)["state"] for line in terminal.out.splitlines()]
    assert states[-1] == "APPLIANCE_STATE_STOPPING"


async def test_identity(terminal: Terminal) -> None:
    assert await terminal.run("identity") == 0
    assert "gpu 0\tNVIDIA H100 (simulated), 81559 MiB, driver 590.1, GPU-1, 00000000:01:00.0" in terminal.out
    assert (await terminal.json("identity"))["hostname"] == "box"


async def test_settings(terminal: Terminal) -> None:
    assert await terminal.run("settings") == 0
    assert terminal.out.splitlines()[1:] == [
        "general\tLOG_LEVEL\tinfo\tinfo\tyes",
        "control\tCONTROL_TOKEN\t(hidden)\t\trestart",
    ]
    assert [row["variable"] for row in (await terminal.json("settings", "--set-only"))["settings"]] == [
        "CONTROL_TOKEN"
    ]


async def test_a_reload_is_tried_then_applied(terminal: Terminal) -> None:
    assert await terminal.run("reload", "--dry-run", "--set", "LOG_LEVEL=debug") == 0
    assert "LOG_LEVEL\tinfo\tdebug\tnow" in terminal.out
    assert terminal.fake.log_level == "info"
    assert await terminal.run("reload", "--set", "LOG_LEVEL=debug") == 0
    assert terminal.fake.log_level == "debug"
    assert (await terminal.json("reload", "--set", "LOG_LEVEL=info"))["applied"] is True


async def test_a_reload_with_problems_fails_also_as_a_dry_run(terminal: Terminal) -> None:
    assert await terminal.run("reload", "--dry-run", "--set", "LOG_LEVEL=loud") == 1
    assert "problem: LOG_LEVEL=loud" in terminal.out
    assert await terminal.run("reload", "--set", "LOG_LEVEL=loud") == 1
    assert terminal.err.startswith("error: Nothing was changed")
    assert terminal.err.count("\n") == 1


async def test_drain_resume_and_shutdown(terminal: Terminal) -> None:
    assert await terminal.run("drain") == 0
    assert terminal.out.startswith("draining, up 12.5s, 3 in flight, worker running")
    assert (await terminal.json("resume"))["state"] == "APPLIANCE_STATE_SERVING"
    assert await terminal.run("shutdown", "--grace", "0") == 0
    assert await terminal.run("shutdown") == 0
    assert terminal.fake.shutdowns == [0.0, None]


async def test_the_worker(terminal: Terminal) -> None:
    for arguments in (["worker"], ["worker", "show"]):
        assert await terminal.run(*arguments) == 0
        assert "command\twork --fast\npid\t4711" in terminal.out
    assert await terminal.run("worker", "stop") == 0
    assert "last exit code\t-15" in terminal.out
    assert await terminal.run("worker", "start") == 0
    assert await terminal.run("worker", "restart") == 0
    assert terminal.fake.worker is not None
    assert terminal.fake.worker.did == ["stop", "start", "stop", "start"]
    terminal.fake.worker.refuses = "The GPU here is simulated."
    assert await terminal.run("worker", "start") == 1
    assert terminal.err == "error: The GPU here is simulated.\n"


async def test_logs(terminal: Terminal) -> None:
    for number in range(3):
        terminal.fake.lines.add(0, "worker.stdout", f"line {number}\x1b[2J")
    assert await terminal.run("logs", "-n", "2", "--source", "worker") == 0
    assert terminal.out == "00:00:00 worker.stdout: line 1\n00:00:00 worker.stdout: line 2\n"


async def test_logs_are_followed_until_the_appliance_stops(terminal: Terminal) -> None:
    async def go_on() -> None:
        await asyncio.sleep(0.2)
        terminal.fake.lines.add(1, "appliance", "new")
        await asyncio.sleep(0.2)
        terminal.fake.become("stopping")

    terminal.fake.lines.add(0, "appliance", "old")
    code, _ = await asyncio.gather(terminal.run("logs", "-f", "--json"), go_on())
    assert code == 0
    assert [jsons.loads(line)["text"] for line in terminal.out.splitlines()] == ["old", "new"]


async def test_chat_shows_the_reply_while_it_is_generated(terminal: Terminal) -> None:
    terminal.fake.backend.script = [
        event({"content": "he"}),
        event({"content": "llo\nyou"}),
        b"data: [DONE]\n\n",
    ]
    assert await terminal.run("chat", "-m", "house", "--system", "be kind", "hi there") == 0
    assert terminal.out == "hello\nyou\n"
    asked = terminal.fake.backend.asked[0]
    assert asked.body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi there"},
    ]
    assert (asked.model, asked.stream) == ("house", True)


async def test_a_whole_chat_and_a_chat_as_json(terminal: Terminal) -> None:
    assert await terminal.run("chat", "--no-stream", "--json", "hi") == 0
    reply, receipt = map(jsons.loads, terminal.out.splitlines())
    assert reply["reply"]["choices"][0]["message"]["content"] == "hello"
    assert receipt["receipt"]["finish"] == "done"


async def test_a_chat_that_breaks_off_ends_with_an_error_line(terminal: Terminal) -> None:
    terminal.fake.backend.script = [event({"content": "he"}), UpstreamFailed("It broke off.")]
    assert await terminal.run("chat", "hi") == 1
    assert (terminal.out, terminal.err) == ("he\n", "error: It broke off.\n")


async def test_backends_and_receipts(terminal: Terminal) -> None:
    assert await terminal.run("backends") == 0
    assert (
        terminal.out.splitlines()[1]
        == "scripted\tscripted\tready\t1\thouse/model\thttp://127.0.0.1:1/v1\tretry in 1.5s; connect: refused"
    )
    terminal.fake.receipts.add(
        Receipt(
            "r1",
            0.0,
            "/v1/chat/completions",
            model="m",
            status=200,
            finish=Finish.DONE,
            prompt_tokens=3,
            completion_tokens=4,
        )
    )
    assert await terminal.run("receipts") == 0
    assert (
        terminal.out.splitlines()[1] == "1970-01-01 00:00:00Z\tr1\t/v1/chat/completions\tm\t200\tdone\t0\t3+4"
    )
    assert await terminal.run("receipt", "r1") == 0
    assert "prompt tokens\t3\ncompletion tokens\t4" in terminal.out
    assert await terminal.run("receipt", "r2") == 1
    assert terminal.err == "error: There is no receipt 'r2'; only the last 1000 are stored.\n"


async def test_receipts_are_filtered_paged_and_followed(terminal: Terminal) -> None:
    for number, model in enumerate(("a", "b", "a")):
        terminal.fake.receipts.add(
            Receipt(f"r{number}", 0.0, "/x", model=model, status=200, key="0123456789ab")
        )

    async def ids(*arguments: str) -> list[str]:
        shown = await terminal.json("receipts", *arguments)
        assert shown["receipts"][0]["key"] == "0123456789ab"
        return [receipt["id"] for receipt in shown["receipts"]]

    assert await ids("--model", "a") == ["r2", "r0"]
    assert await ids("-n", "1", "--before", "r2") == ["r1"]
    assert await ids("--key", "0123456789ab", "--status", "2xx", "--until", "1s") == ["r2", "r1", "r0"]
    assert (await terminal.json("receipts", "--since", "1s"))["receipts"] == []
    assert await terminal.run("receipts", "--finish", "well") == 2
    assert terminal.err == "error: --finish well: use one of done, client_left, cut_off, error.\n"
    assert await terminal.run("receipts", "--since", "never") == 2
    assert await terminal.run("receipts", "--key", "a-real-key") == 1
    assert "never the key itself" in terminal.err

    async def go_on() -> None:
        await asyncio.sleep(0.2)
        terminal.fake.receipts.add(Receipt("r3", model="a"))
        terminal.fake.receipts.add(Receipt("r4", model="b"))
        await asyncio.sleep(0.1)
        terminal.fake.become("stopping")

    code, _ = await asyncio.gather(terminal.run("receipts", "-f", "-n", "1", "--model", "a"), go_on())
    assert code == 0
    assert [line.split("\t")[1] for line in terminal.out.splitlines()] == ["r2", "r3"]


# ---- errors and exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["reload", "--set", "NOVALUE"],
        ["receipt"],
        ["logs", "-n", "-1"],
        ["status", "--address", "nowhere"],
        ["status", "--timeout", "0"],
        ["status", "--tls-cert", "/x"],
        ["status", "--tls-ca", "/does/not/exist"],
    ],
)
async def test_wrong_usage_is_exit_code_2(terminal: Terminal, arguments: list[str]) -> None:
    assert await terminal.run(*arguments) == 2
    assert terminal.err
    assert not terminal.out


async def test_an_unreachable_appliance_is_exit_code_3_in_one_sentence(
    terminal: Terminal, tmp_path: Path
) -> None:
    for address in (f"127.0.0.1:{free_port()}", f"unix:{tmp_path / 'none.sock'}"):
        assert await terminal.run("status", "--address", address) == 3
        assert (
            terminal.err
            == f"error: No appliance responds at {address}. Check that it is running, and the address (--address, CONTROL_ADDRESS).\n"
        )


async def test_no_response_in_time_is_exit_code_3(terminal: Terminal) -> None:
    terminal.fake.backend.script = "hang"
    assert await terminal.run("chat", "hi", "--timeout", "0.3") == 3
    assert "No response from" in terminal.err


async def test_a_missing_or_wrong_token_is_exit_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.sock"
    terminal = Terminal(FakeAppliance(), capsys)
    async with serving_control(
        control_settings(control_socket=path, control_token=TOKEN), terminal.fake.parts()
    ):
        assert await terminal.run("status", "--address", str(path)) == 4
        assert "CONTROL_TOKEN_FILE" in terminal.err
        monkeypatch.setenv("CONTROL_TOKEN", "a-wrong-token")
        assert await terminal.run("status", "--address", str(path)) == 4
        assert "a-wrong-token" not in terminal.err
        monkeypatch.setenv("CONTROL_TOKEN", TOKEN)
        assert await terminal.run("status", "--address", str(path)) == 0


async def test_mutual_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issuer in (("server", ca), ("client", ca), ("stranger", other)):
        cert = issuer.issue_cert("127.0.0.1")
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    port = free_port()
    settings = control_settings(
        control_port=port,
        control_tls_cert=tmp_path / "server.pem",
        control_tls_key=tmp_path / "server.key",
        control_tls_client_ca=tmp_path / "ca.pem",
    )
    terminal = Terminal(FakeAppliance(), capsys)
    there = ["status", "--address", f"127.0.0.1:{port}", "--tls-ca", str(tmp_path / "ca.pem")]
    async with serving_control(settings, terminal.fake.parts()):
        for name, code in (("client", 0), ("stranger", 3)):
            pair = ["--tls-cert", str(tmp_path / f"{name}.pem"), "--tls-key", str(tmp_path / f"{name}.key")]
            assert await terminal.run(*there, *pair) == code
        assert await terminal.run(*there) == 3
        assert terminal.err.count("\n") == 1


def test_no_argument_takes_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["--token", "x", "status"]) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["status", "--json"], ["--json", "status"]),
        (["logs", "-f", "--address", "a:1", "-n", "3"], ["--address", "a:1", "logs", "-f", "-n", "3"]),
        (["status", "--timeout=3"], ["--timeout=3", "status"]),
        (["chat", "--", "--json"], ["chat", "--", "--json"]),
        (["status", "--address"], ["--address", "status"]),
    ],
)
def test_options_of_all_commands_may_stand_anywhere(given: list[str], expected: list[str]) -> None:
    assert ctl.move_global_options(given) == expected


def test_grpc_and_rich_are_imported_only_when_needed() -> None:
    code = "import sys, appliance.cli.ctl; print([m for m in ('grpc', 'rich', 'google.protobuf') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("text", ["NOVALUE", "=x", "A-B=x"])
def test_an_override_is_a_name_and_a_value(text: str) -> None:
    assert ctl.parse_overrides(["A=x", "B="]) == {"A": "x", "B": ""}
    with pytest.raises(CallFailed, match=": use NAME=VALUE"):
        ctl.parse_overrides([text])
