"""examples/: programs are run as they stand, configurations by their clients where these are installed, and checked in any case.

LangChain, LlamaIndex, aider, Continue and Open WebUI are not in the locked environment: `EXAMPLE_CLIENTS` names a folder that has them
(examples/README.md says how to fill it). Codex CLI and Claude Code run in test_agents.py.
"""

import asyncio
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from appliance.settings import known_variables
from tests.fakes.hosted_api import KEY as HOSTED_KEY
from tests.fakes.hosted_api import HostedApi, Reply
from tests.journeys.llama_servers import Llama
from tests.journeys.node_clients import SCRIPTS
from tests.journeys.running import Running, Start, free_port
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = sorted(path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__"))
ADDRESS, QUESTION, KEY = "http://127.0.0.1:14000", "How warm is it in Paris?", "client-key-123456"
OWN_VARIABLES = {"BASE_URL", "API_KEY", "MODEL", "EMBEDDING_MODEL", "CONTEXT"}  # that the examples read
PROGRAMS = {
    "openai_python.py": "",
    "ollama_python.py": "",
    "openai_node.mjs": "node",
    "ai_sdk.mjs": "node",
    "langchain_agent.py": "langchain",
    "llamaindex_search.py": "llamaindex",
}
HELLO, WARM = "[demo engine] You said: Hello", "[demo engine] The tool returned: 20 degrees in demo"
MODEL = "models: meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1"
VECTORS, OBJECT = "embeddings: 64 and 64 numbers", 'object: {"name":"demo"}'
FOUND = "found: The appliance listens on port 14000."
WITH_DEMO = {
    "openai_python.py": [MODEL, f"stream: {HELLO}", f"tool: {WARM}", VECTORS],
    "ollama_python.py": [MODEL, f"stream: {HELLO}", f"tool: {WARM}", VECTORS],
    "openai_node.mjs": [MODEL, f"stream: {HELLO}", f"tool: {WARM}", VECTORS],
    "ai_sdk.mjs": [f"stream: {HELLO}", f"tool: {WARM}", OBJECT, VECTORS],
    "langchain_agent.py": [f"stream: {HELLO}", f"tool: {WARM}", OBJECT, VECTORS],
    "llamaindex_search.py": [f"stream: {HELLO}", FOUND],
}
KEPT = f"responses: {HELLO} / [demo engine] You said: And now?"


def installed(client: str, *, program: str = "bin/python") -> Path:
    """Return a client of EXAMPLE_CLIENTS; skip the test where it is not there."""
    path = Path(os.environ.get("EXAMPLE_CLIENTS") or "/nonexistent") / client / program
    if not path.exists():
        pytest.skip(f"EXAMPLE_CLIENTS names no folder with {client}/{program} (see examples/README.md)")
    return path


async def printed(*command: str | Path, cwd: Path, limit_s: float = 60, **variables: str) -> str:
    """Run a command with these variables alone; return what it printed. It must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **variables},
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()[-3000:] + out.decode()[-3000:]
    return out.decode()


def placed(name: str, folder: Path, running: Running, *, key: str = KEY) -> Path:
    """Copy a configuration, with the address and the key of a test."""
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace(ADDRESS, running.base_url)
    text, count = re.subn(r"(?<=[kK]ey: )any\b", key, text)
    assert count
    copy = folder / name
    copy.write_text(text)
    return copy


async def run_program(
    name: str, folder: Path, request: pytest.FixtureRequest, *, question: str = QUESTION, **variables: str
) -> list[str]:
    """Run a program with its client; return its lines."""
    program = folder / name
    program.write_text((EXAMPLES / name).read_text(encoding="utf-8").replace(QUESTION, question))
    client = PROGRAMS[name]
    command: str | Path = client or sys.executable
    if client == "node":
        (folder / "node_modules").symlink_to(request.getfixturevalue("node_packages") / "node_modules")
    elif client:
        command = installed(client)
    return (await printed(command, program, cwd=folder, **variables)).splitlines()


# ---- programs


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_runs_with_the_demo_engine(
    name: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    question = "demo: tool weather"
    lines = await run_program(
        name, tmp_path, request, question=question, BASE_URL=running.base_url, API_KEY=KEY
    )
    wanted = WITH_DEMO[name] + ([KEPT] if name.startswith("openai") else [])
    assert lines[: len(wanted)] == wanted


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_runs_with_a_llama_server(
    name: str, start: Start, llama: Llama, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The tiny model knows one sentence, and calls no tool unless it must."""
    running = await start(**behind(await llama(), await llama(embeddings=True, alias="embed")))
    variables = {"BASE_URL": running.base_url, "MODEL": "tiny", "EMBEDDING_MODEL": "embed", "CONTEXT": "8192"}
    text = "\n".join(await run_program(name, tmp_path, request, **variables))
    assert f"stream: {REPLY}\n" in text
    if name.startswith("llamaindex"):
        assert re.search(rf"^found: .+\nanswer: {REPLY}$", text, re.MULTILINE)
    else:
        assert f"tool: {REPLY}\n" in text
        assert VECTORS in text
    if name.startswith("openai"):
        assert f"responses: {REPLY} / {REPLY}" in text
    if name in ("ai_sdk.mjs", "langchain_agent.py"):
        assert re.search(r'^object: \{"name":".*"\}$', text, re.MULTILINE)


async def test_the_curl_script_asks_each_api(start: Start, tmp_path: Path) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    text = await printed(EXAMPLES / "curl.sh", cwd=tmp_path, BASE_URL=running.base_url, API_KEY=KEY)
    parts = re.split(r"^== (/\S+)\n", text, flags=re.MULTILINE)[1:]
    answers = list(zip(parts[::2], parts[1::2], strict=True))
    assert [path for path, _ in answers] == [
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/api/chat",
    ]
    models, chat, stream, embeddings, responses, messages, ollama = (answer for _, answer in answers)
    assert json.loads(models)["object"] == "list"
    assert json.loads(chat)["choices"][0]["message"]["content"] == HELLO
    assert stream.strip().endswith("data: [DONE]")
    assert len(json.loads(embeddings)["data"]) == 2
    assert json.loads(responses)["output"][0]["content"][0]["text"] == HELLO
    assert json.loads(messages)["content"][0]["text"] == HELLO
    assert "".join(json.loads(line)["message"]["content"] for line in ollama.split("\n") if line) == HELLO


async def test_the_curl_script_fails_with_the_error_that_came(start: Start, tmp_path: Path) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    environ = {"PATH": os.environ["PATH"], "BASE_URL": running.base_url, "API_KEY": "wrong"}
    done = await asyncio.to_thread(
        subprocess.run, [str(EXAMPLES / "curl.sh")], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 22
    assert "invalid_api_key" in done.stdout


def test_claude_codes_script_sets_its_variables(tmp_path: Path) -> None:
    fake = tmp_path / "claude"
    fake.write_text('#!/bin/sh\nenv; echo "arguments: $*"\n')
    fake.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "BASE_URL": "http://a", "API_KEY": KEY, "MODEL": "m"}
    done = subprocess.run(
        [str(EXAMPLES / "claude_code.sh"), "-p", "Hello"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {
        "ANTHROPIC_BASE_URL=http://a",
        f"ANTHROPIC_AUTH_TOKEN={KEY}",
        "ANTHROPIC_MODEL=m",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL=m",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS=32768",
        "arguments: -p Hello",
    } <= set(done.stdout.splitlines())


# ---- configurations, by their clients


async def test_aider_edits_a_file(start: Start, hosted: HostedApi, tmp_path: Path) -> None:
    edit = "a.py\n```python\n<<<<<<< SEARCH\nprint(1)\n=======\nprint(2)\n>>>>>>> REPLACE\n```\n"
    hosted.script(Reply(edit))
    running = await start(
        NOVITA_API_KEY=HOSTED_KEY, NOVITA_OPENAI_ENDPOINTS=hosted.base_url, APPLIANCE_API_KEYS=KEY
    )
    config = placed("aider.conf.yml", tmp_path, running)
    project = tmp_path / "project"
    project.mkdir()
    (project / "a.py").write_text("print(1)\n")
    aider = installed("aider", program="bin/aider")
    arguments = ("--config", config, "--no-git", "--yes-always", "--message", "Print 2.", "a.py")
    text = await printed(aider, *arguments, cwd=project, limit_s=100)
    assert (project / "a.py").read_text() == "print(2)\n", text
    assert hosted.records[-1].body["messages"][0]["role"] == "system"


async def test_continues_command_chats(start: Start, tmp_path: Path) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    config = placed("continue.config.yaml", tmp_path, running)
    command = installed("continue", program="node_modules/.bin/cn")
    text = await printed(
        command, "--config", config, "-p", "Hello", cwd=tmp_path, CONTINUE_TELEMETRY_ENABLED="0"
    )
    assert text.strip() == HELLO


def open_webui_variables(address: str, key: str) -> dict[str, str]:
    """Return the variables of the compose file, with the values that compose would give them."""
    [service] = compose()["services"].values()
    variables = {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in service["environment"].items()
    }
    return {
        name: key if value == "any" else value.replace("http://appliance:14000", address)
        for name, value in variables.items()
    }


@asynccontextmanager
async def open_webui(folder: Path, **variables: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run Open WebUI until it answers; give a client that is signed in."""
    command, port = installed("open-webui", program="bin/open-webui"), free_port()
    with (folder / "open-webui.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            command,
            *("serve", "--host", "127.0.0.1", "--port", str(port)),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "DATA_DIR": str(folder), **variables},
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            for _ in range(240):
                try:
                    if (await http.get("/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    await asyncio.sleep(0.5)
            signed_in = await http.post("/api/v1/auths/signin", json={"email": "", "password": ""})
            http.headers["authorization"] = f"Bearer {signed_in.json()['token']}"
            yield http
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.timeout(240)
async def test_open_webui_chats_and_searches_in_documents(start: Start, tmp_path: Path) -> None:
    running = await start(APPLIANCE_API_KEYS=KEY)
    variables = open_webui_variables(running.base_url, KEY) | {"WEBUI_AUTH": "false"}
    text = "The appliance listens on port 14000."
    async with open_webui(tmp_path, **variables) as http:
        [model] = (await http.get("/api/models")).json()["data"]
        chat: dict[str, Any] = {"model": model["id"], "messages": [{"role": "user", "content": "Hello"}]}
        replied = (await http.post("/api/chat/completions", json={**chat, "stream": False})).json()
        files = {"file": ("a.txt", text.encode())}
        given = {"process": "true", "process_in_background": "false"}
        file = (await http.post("/api/v1/files/", params=given, files=files)).json()
        query = {"collection_name": f"file-{file['id']}", "query": "Which port?", "k": 1}
        found = (await http.post("/api/v1/retrieval/query/doc", json=query)).json()
    assert replied["choices"][0]["message"]["content"] == HELLO
    assert found["documents"] == [[text]]
    asked = {receipt.route for receipt in running.appliance.receipts.latest(100)}
    assert {"/v1/chat/completions", "/v1/embeddings"} <= asked


# ---- configurations, against what the appliance has


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / "open_webui.compose.yaml").read_text(encoding="utf-8")))


def routes() -> set[str]:
    """Return the addresses of docs/http-api.md, which is rendered from the route tables."""
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| [A-Z, ]+ \| `(/[^`]*)`", page, re.MULTILINE))


def test_codexs_configuration_names_an_address_that_exists() -> None:
    config = tomllib.loads((EXAMPLES / "codex.config.toml").read_text(encoding="utf-8"))
    provider = config["model_providers"][config["model_provider"]]
    assert provider["wire_api"] == "responses"
    assert provider["base_url"].removeprefix(ADDRESS) + "/responses" in routes()


def test_continues_configuration_names_addresses_that_exist() -> None:
    paths = {"chat": "/chat/completions", "autocomplete": "/completions", "embed": "/embeddings"}
    config = yaml.safe_load((EXAMPLES / "continue.config.yaml").read_text(encoding="utf-8"))
    assert (config["schema"], set(config)) == ("v1", {"name", "version", "schema", "models"})
    roles = set()
    for model in config["models"]:
        roles |= set(model["roles"])
        assert (model["provider"], model["model"]) == ("openai", "demo")
        assert model["apiBase"].removeprefix(ADDRESS) + paths[model["roles"][0]] in routes()
    assert roles == {"chat", "edit", "apply", "autocomplete", "embed"}


def test_aiders_configuration_names_an_address_that_exists() -> None:
    config = yaml.safe_load((EXAMPLES / "aider.conf.yml").read_text(encoding="utf-8"))
    assert config["openai-api-base"].removeprefix(ADDRESS) + "/chat/completions" in routes()
    assert config["model"] == "openai/demo"


def test_open_webuis_compose_file_joins_the_appliances() -> None:
    """It is given beside compose.yaml: its addresses are a service and a port of that file."""
    base = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    [(name, service)] = compose()["services"].items()
    assert name not in base["services"]
    [(needed, condition)] = service["depends_on"].items()
    assert condition == {"condition": "service_healthy"}
    assert "healthcheck" in base["services"][needed]
    [published] = base["services"][needed]["ports"]
    port = published.removeprefix("${PUBLISH:-127.0.0.1:14000}:")
    assert port == "${PROXY_PORT:-14000}"  # where the appliance listens, in both files
    addresses = {value for key, value in service["environment"].items() if key.endswith("_BASE_URL")}
    assert addresses == {f"http://{needed}:{port}/v1"}
    [volume] = service["volumes"]
    assert volume.partition(":")[0] in compose()["volumes"]
    assert all(
        isinstance(value, str) for value in service["environment"].values()
    )  # compose refuses booleans
    text = (EXAMPLES / "open_webui.compose.yaml").read_text(encoding="utf-8")
    assert re.findall(r"\$\{\w+(?!\w|:-)", text) == []  # each variable has a default
    assert set(re.findall(r"\$\{(\w+)", text)) & set(known_variables()) == {"PROXY_PORT"}


def test_open_webuis_compose_file_names_variables_that_it_reads() -> None:
    [service] = compose()["services"].values()
    for path in sorted(installed("open-webui", program="lib").glob("*/site-packages/open_webui/config.py")):
        known = path.read_text(encoding="utf-8") + path.with_name("env.py").read_text(encoding="utf-8")
        assert [key for key in service["environment"] if f"'{key}'" not in known] == []


# ---- the index, and what all have in common


@pytest.mark.parametrize("name", FILES)
def test_the_index_has_each_file(name: str) -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"| [{name}]({name}) |" in index


@pytest.mark.parametrize("name", FILES)
def test_an_example_names_settings_that_exist(name: str) -> None:
    """What it reads must be no setting's name: a variable APPLIANCE_… that is none stops the appliance in the same shell."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert set(re.findall(r"\bAPPLIANCE_\w+", text)) <= set(known_variables())
    assert OWN_VARIABLES & set(known_variables()) == set()
    assert len(text.splitlines()) <= 60


def test_the_index_says_the_versions_that_are_tested() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    versions = {name: importlib.metadata.version(name) for name in ("openai", "ollama")}
    rows = [f"{name} {version}" for name, version in versions.items()]
    for folder in (SCRIPTS, SCRIPTS.with_name("agents")):
        package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        rows += [f"{name} {version}" for name, version in package["dependencies"].items()]
    assert [row for row in rows if f" {row}" not in index] == []
