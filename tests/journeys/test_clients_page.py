"""docs/clients.md: the programs that stand there are run as they stand, with an address and a model of the test's."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.journeys.running import Running, Start

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
BLOCKS = re.findall(r"^```(js|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
IDS = ["AI SDK", "openai for JavaScript", "openai", "anthropic", "ollama"]


async def printed(program: str, running: Running, folder: Path, *, name: str, command: str) -> str:
    """Run a program of the page; return what it printed."""
    script = folder / name
    script.write_text(program.replace("http://127.0.0.1:14000", running.base_url).replace("NAME", "demo"))
    process = await asyncio.create_subprocess_exec(
        command,
        script,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return out.decode().strip()


@pytest.mark.parametrize(("language", "program"), BLOCKS, ids=IDS)
async def test_a_program_of_the_page_runs(
    language: str, program: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running = await start()
    if language == "js":
        modules = request.getfixturevalue("node_packages") / "node_modules"
        (tmp_path / "node_modules").symlink_to(modules)
        said = await printed(program, running, tmp_path, name="program.mjs", command="node")
    else:
        said = await printed(program, running, tmp_path, name="program.py", command=sys.executable)
    assert said == "[demo engine] You said: Hello"
