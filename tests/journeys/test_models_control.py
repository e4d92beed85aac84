"""Local models steered from a terminal over the control API.

The whole appliance, its manager, and real llama-servers.
"""

from pathlib import Path

from appliance.base import jsons
from tests.cli.test_ctl_backends import Terminal
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
