"""Local models steered from a terminal over the control API.

The whole appliance, its manager, and real llama-servers.
"""

import sys
from pathlib import Path

from appliance.base import jsons
from tests.cli.test_ctl_backends import Terminal
from tests.journeys.model_tables import port_range
from tests.tools.tiny_engine import REPLY as ENGINE_REPLY
from tests.tools.tiny_models import REPLY


async def test_terminal_loads_requests_pins_and_ejects_a_model(
    start, llama_binary: str, tiny_models: Path
) -> None:
    running = await start(MODEL_DIR=str(tiny_models), LLAMA_SERVER_PATH=llama_binary)
    terminal = Terminal(running)
    assert await terminal.run("model", "load", "tiny-chat", "--json") == 0, terminal.err
    steps = [jsons.loads(line) for line in terminal.out.splitlines()]
    assert {step["status"] for step in steps} & {"MODEL_STATUS_STARTING", "MODEL_STATUS_LOADING"}
    assert (steps[-1]["status"], steps[-1]["load_progress_percent"]) == ("MODEL_STATUS_READY", 100)
    pid = int(steps[-1]["runners"][0]["pid"])
    assert Path(f"/proc/{pid}").exists()
    assert await terminal.run("chat", "-m", "tiny-chat", "hello") == 0, terminal.err
    assert terminal.out.strip() == REPLY
    assert await terminal.run("queue", "tiny-chat") == 0
    assert terminal.out.splitlines()[1].split("\t")[5:] == ["1", "1", "0"]
    assert await terminal.run("vram") == 0
    assert "tiny-chat " in terminal.out
    assert await terminal.run("model", "pin", "tiny-chat") == 0
    assert await terminal.run("models") == 0
    assert "tiny-chat\tready, pinned\t" in terminal.out
    assert await terminal.run("model", "eject", "tiny-chat") == 0
    assert terminal.out == "tiny-chat is unloaded\n"
    assert not Path(f"/proc/{pid}").exists()


async def test_the_status_names_no_hosted_model_where_there_is_none(
    start, llama_binary: str, tiny_models: Path
) -> None:
    running = await start(MODEL_DIR=str(tiny_models), LLAMA_SERVER_PATH=llama_binary)
    terminal = Terminal(running)
    assert await terminal.run("status", "--json") == 0, terminal.err
    status = jsons.loads(terminal.out)
    assert (status["public_model"], status["upstream_base"]) == ("tiny-chat", "")
    assert status["novita_endpoints"] == []
    assert status["in_flight"] == 0  # the question itself is none
    assert {row["kind"] for row in status["backends"]} == {"managed"}
    assert await terminal.run("status") == 0
    assert "llama-3.2" not in terminal.out


async def test_what_cannot_be_loaded_is_said(start, llama_binary: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.gguf").write_bytes(b"no model at all")
    running = await start(MODEL_DIR=str(tmp_path / "models"), LLAMA_SERVER_PATH=llama_binary)
    terminal = Terminal(running)
    assert await terminal.run("model", "load", "broken") == 1
    assert "'broken' could not be loaded (1 attempt)" in terminal.err
    assert await terminal.run("models") == 0
    assert "broken\tfailed\t" in terminal.out
    assert await terminal.run("model", "reset", "broken") == 0
    assert terminal.out.startswith("broken can be loaded again; 1 load had failed: ")


async def test_a_model_with_a_command_is_shown_and_steered(start, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    engine = Path(__file__).parents[1] / "tools" / "tiny_engine.py"
    command = [sys.executable, str(engine), "--port", "${PORT}"]
    failing = [sys.executable, "-c", "raise SystemExit('no luck')"]
    rows = {
        "any": {"command": command, "memory_mb": 50, "max_concurrency": 3, "context_tokens": 8192},
        "bare": {"command": command, "before_load": failing},
    }
    system = {"model_load_max_retries": 0}
    config.write_bytes(jsons.dumps({"system": system, "models": rows}))
    terminal = Terminal(await start(CONFIG_PATH=str(config), **port_range()))
    assert await terminal.run("model", "load", "any", "--json") == 0, terminal.err
    last = jsons.loads(terminal.out.splitlines()[-1])
    assert (last["status"], last.get("path", ""), last["slots"]) == ("MODEL_STATUS_READY", "", 3)
    assert await terminal.run("chat", "-m", "any", "hello") == 0, terminal.err
    assert terminal.out.strip() == ENGINE_REPLY
    assert await terminal.run("models") == 0
    assert "any\tready\t" in terminal.out
    assert "bare\toff\t" in terminal.out
    assert await terminal.run("model", "show", "any") == 0
    shown = dict(line.split(None, 1) for line in terminal.out.splitlines() if len(line.split()) > 1)
    assert "file" not in shown
    assert shown["context"] == "8192 tokens"
    assert "50" in terminal.out
    assert await terminal.run("model", "load", "bare") == 1
    assert "exited with code 1: no luck" in terminal.err
    assert await terminal.run("model", "show", "bare") == 0
    assert "failed" in terminal.out
    assert await terminal.run("model", "eject", "any") == 0
    assert terminal.out == "any is unloaded\n"
