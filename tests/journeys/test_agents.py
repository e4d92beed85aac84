"""Codex CLI and Claude Code themselves, against the appliance and a scripted engine: `make test-agents`.

`AGENTS_RECORD=1 make test-agents` writes tests/journeys/agents/recorded anew, which test_agent_calls.py sends without the clients.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.hosted_api import HostedApi
from tests.fakes.recording_proxy import Call, RecordingProxy
from tests.journeys.agent_clients import AFTER, RECORDED, SCENARIOS, Scenario, Shortener, placed, write_calls
from tests.journeys.node_clients import TOOL
from tests.journeys.running import Running, Start

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]
CODEX_CONFIG = """
model = "demo"
model_provider = "appliance"
check_for_update_on_startup = false
analytics.enabled = false

[model_providers.appliance]
name = "appliance"
base_url = "BASE_URL/v1"
wire_api = "responses"
"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = """%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj
trailer<</Root 1 0 R>>
%%EOF
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
MCP_SERVER = Path(__file__).parents[1] / "fakes" / "mcp_server.py"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """The programs of the clients, fetched where they are missing."""
    done = subprocess.run(
        [str(TOOL), "agents"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        pytest.fail(f"the clients could not be had:\n{done.stderr}", pytrace=False)
    modules = Path(done.stdout.strip()) / "node_modules"
    [claude] = modules.glob("@anthropic-ai/claude-code-*/claude")
    return {"codex": modules / ".bin" / "codex", "claude": claude}


def prepare(folder: Path) -> None:
    """Put the files there that the scenarios read."""
    folder.mkdir()
    (folder / "a.txt").write_text("hi\n")
    (folder / "p.png").write_bytes(base64.b64decode(PIXEL))
    (folder / "d.pdf").write_text(PDF)
    shutil.copy(MCP_SERVER, folder)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))


async def ask(
    program: Path, scenario: Scenario, folder: Path, running: Running, hosted: HostedApi
) -> tuple[str, list[Call]]:
    """Run a client as its user would; return what it printed, and its calls."""
    hosted.script(*(placed(reply, str(folder)) for reply in scenario.replies))
    home = folder.parent / "home"
    (home / ".codex").mkdir(parents=True, exist_ok=True)
    async with RecordingProxy(running.base_url) as proxy:
        (home / ".codex" / "config.toml").write_text(CODEX_CONFIG.replace("BASE_URL", proxy.base_url))
        process = await asyncio.create_subprocess_exec(
            program,
            *(argument.replace("{folder}", str(folder)) for argument in scenario.arguments),
            scenario.prompt,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": str(home),
                "CODEX_OSS_BASE_URL": f"{proxy.base_url}/v1",
                "ANTHROPIC_BASE_URL": proxy.base_url,
                "ANTHROPIC_AUTH_TOKEN": "any",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            },
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 120)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 0, err.decode()
    return out.decode(), proxy.calls


async def test_codexs_configuration_of_the_examples_works(
    programs: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    running = await start()
    home = tmp_path / "home" / ".codex"
    home.mkdir(parents=True)
    shutil.copy(EXAMPLES / "codex.config.toml", home / "config.toml")
    address = f'model_providers.appliance.base_url="{running.v1}"'
    arguments = ("exec", "--skip-git-repo-check", "-c", address, "Hello")
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home.parent)}
    done = await asyncio.to_thread(
        subprocess.run,
        [programs["codex"], *arguments],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert (done.returncode, done.stdout.startswith("[demo engine] You said: ")) == (0, True), done.stderr
    assert [receipt.route for receipt in running.appliance.receipts.latest(9)] == ["/v1/responses"]


async def test_claude_codes_script_of_the_examples_works(
    programs: dict[str, Path], start: Start, tmp_path: Path
) -> None:
    running = await start(APPLIANCE_API_KEYS="client-key-123456")
    path = f"{programs['claude'].parent}:/usr/local/bin:/usr/bin:/bin"
    environ = {
        "PATH": path,
        "HOME": str(tmp_path),
        "BASE_URL": running.base_url,
        "API_KEY": "client-key-123456",
    }
    done = await asyncio.to_thread(
        subprocess.run,
        [EXAMPLES / "claude_code.sh", "-p", "Hello"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert (done.returncode, done.stdout.startswith("[demo engine] You said: ")) == (0, True), done.stderr
    assert {receipt.route for receipt in running.appliance.receipts.latest(9)} == {"/v1/messages"}


@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_a_client_works_as_its_users_run_it(
    name: str, programs: dict[str, Path], relay: Running, hosted: HostedApi, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    prepare(folder)
    if before := AFTER.get(name):
        await ask(programs[SCENARIOS[before].client], SCENARIOS[before], folder, relay, hosted)
    scenario = SCENARIOS[name]
    printed, calls = await ask(programs[scenario.client], scenario, folder, relay, hosted)
    assert [(call.path, call.status) for call in calls] == [(path, 200) for path in scenario.paths], calls
    last = scenario.replies[-1]
    assert (last.text or json.dumps(last.calls[0][1])[1:-1]).replace(" ", "") in printed.replace(" ", "")
    named = {one for call in calls for one in call.ignored.split(", ") if one}
    assert named <= scenario.ignored
    if os.environ.get("AGENTS_RECORD"):
        write_calls(RECORDED / f"{name}.json", calls, Shortener(str(folder)))
