"""The AI SDK (npm) over the Responses API, as it comes: it refers to items of kept responses.

Run with AI_SDK_DIR, a folder where `npm install ai@5 @ai-sdk/openai@2` has been run; Node.js 18 or newer.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.journeys.running import Start

AI_SDK_DIR = os.environ.get("AI_SDK_DIR", "")


@pytest.mark.skipif(not AI_SDK_DIR, reason="AI_SDK_DIR is not set")
async def test_the_ai_sdk_works_unmodified(start: Start, tmp_path: Path) -> None:
    running = await start()
    (tmp_path / "node_modules").symlink_to(Path(AI_SDK_DIR, "node_modules").resolve())
    script = shutil.copy(Path(__file__).with_name("ai_sdk.mjs"), tmp_path)
    process = await asyncio.create_subprocess_exec(
        "node",
        "--preserve-symlinks",
        "--preserve-symlinks-main",
        script,
        running.v1,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    got = json.loads(out)
    returned = "[demo engine] The tool returned: 20 degrees"
    assert got["texts"] == [
        "[demo engine] You said: Hello",
        returned,
        returned,
        "[demo engine] You said: And now?",
        "[demo engine] You said: More",
    ]
    assert got["calls"] == ["weather"]
    assert got["references"] == 3
