"""Official clients in Python that are not in the locked environment, run as programs of their own, newest and one generation older.

`got = await python("events", "newest", url, key=…)`: runs tests/journeys/python/events.py, returns the JSON that it prints last.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "python-clients"
SCRIPTS = Path(__file__).with_name("python")
RunPython = Callable[..., Awaitable[Any]]


def interpreter(kind: str) -> str:
    """Return the Python that has the clients; where no index has them the test is skipped."""
    done = subprocess.run(
        [str(TOOL), kind],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        pytest.skip(reason)
    return done.stdout.strip()


@pytest.fixture
def python(tmp_path: Path) -> RunPython:
    """Run a script of tests/journeys/python with the clients of a generation."""

    async def run(name: str, kind: str, url: str, **options: Any) -> Any:
        process = await asyncio.create_subprocess_exec(
            await asyncio.to_thread(interpreter, kind),
            str(SCRIPTS / f"{name}.py"),
            url,
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
        assert process.returncode == 0, err.decode() + out.decode()
        return json.loads(out.decode().strip().splitlines()[-1])

    return run
