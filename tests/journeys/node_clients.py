"""Clients for Node.js, run as programs: `got = await node("ai_sdk", running, hello="Hello")`."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.running import Running

TOOL = Path(__file__).parents[1] / "tools" / "node-clients"
SCRIPTS = Path(__file__).with_name("node")

RunNode = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The folder with the packages of tests/journeys/node, fetched where they are missing.

    Without Node.js or a network the test is skipped; in continuous integration (`CI`) it fails.
    """
    done = subprocess.run([str(TOOL)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        if os.environ.get("CI"):
            pytest.fail(f"no clients for Node.js could be had:\n{done.stderr}", pytrace=False)
        pytest.skip(reason)
    return Path(done.stdout.strip())


@pytest.fixture
def node(node_packages: Path, tmp_path: Path) -> RunNode:
    """Run a script of tests/journeys/node against an appliance; return the JSON that it prints.

    `await node(name, running, **options)`: the options are the script's second argument.
    """

    async def run(name: str, running: Running, **options: Any) -> dict[str, Any]:
        modules = tmp_path / "node_modules"  # beside the script, where Node.js looks for packages
        if not modules.exists():
            modules.symlink_to(node_packages / "node_modules")
        script = shutil.copy(SCRIPTS / f"{name}.mjs", tmp_path)
        process = await asyncio.create_subprocess_exec(
            "node",
            script,
            running.v1,
            json.dumps(options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, err.decode()
        return dict(json.loads(out))

    return run
