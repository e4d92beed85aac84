"""A real whisper-server that the model manager starts by a command of the table, beside a llama-server.

Needs WHISPER_SERVER, the path of one; `tests/tools/whisper-server` gets it from Debian (150 MB).
"""

import os
from pathlib import Path

import openai
import pytest

from tests.journeys.model_tables import Managed, runs
from tests.tools.tiny_models import REPLY
from tests.tools.tiny_whisper import write_model, write_sound

PROGRAM = os.environ.get("WHISPER_SERVER", "")
pytestmark = [
    pytest.mark.skipif(
        not PROGRAM, reason="WHISPER_SERVER names no whisper-server (tests/tools/whisper-server)"
    ),
    pytest.mark.timeout(120),
]
ADDRESS = "/v1/audio/transcriptions"


async def test_a_whisper_server_is_loaded_asked_and_swapped(managed: Managed, tmp_path: Path) -> None:
    model, sound = write_model(tmp_path / "tiny.bin"), write_sound(tmp_path / "a.wav")
    words = [PROGRAM, "-m", str(model), "--port", "${PORT}", "--inference-path", ADDRESS, "-t", "1", "-nf"]
    row = {"command": words, "max_concurrency": 1}
    appliance = await managed("file", "whisper", whisper=row, max_concurrent_models=1)
    assert await appliance.chat("file") == REPLY
    async with openai.AsyncOpenAI(base_url=appliance.running.v1, api_key="none", max_retries=0) as client:
        for form in ("json", "verbose_json"):
            made = await client.audio.transcriptions.create(
                model="whisper", file=(sound.name, sound.read_bytes()), response_format=form
            )
            assert isinstance(made.text, str)
    assert appliance.statuses() == {"file": "off", "whisper": "ready"}
    pid = appliance.pid("whisper")
    assert (await appliance.ask("whisper"))[0] == 404  # it has no chats
    assert await appliance.chat("file") == REPLY
    assert not runs(pid)
    counts = appliance.manager.counts()
    assert (counts.crashes, counts.by_model) == (0, {"file": 2, "whisper": 1})
