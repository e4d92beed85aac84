"""With ACCOUNTS=0 nothing of accounts, databases and their libraries is loaded in a process that serves."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from tests.fakes.counting_engine import CountingEngine
from tests.journeys.paying import DIALECTS, QUICK, begin_paying
from tests.journeys.running import Running, Spawn, Start

KEY = "a-static-key-of-the-settings"
# Times and ids; the length of a chunk whose content has them.
VARIES = re.compile(
    rb"(?i:date|server-timing|x-appliance-receipt|openai-processing-ms): [^\r]*\r\n"
    rb'|"(?:id|item_id|response_id|created_at|created|completed_at|total_duration|load_duration|'
    rb'prompt_eval_duration|eval_duration)":(?:"[^"]*"|[0-9.]+)|\r\n[0-9a-f]+\r\n|Content-Length: [0-9]+'
)

# (greenlet, which SQLAlchemy needs, is loaded by structlog wherever it is installed.)
LIBRARIES = {"sqlalchemy", "alembic", "asyncpg", "sqlite3", "redis", "argon2", "bcrypt", "jwt", "mcp"}
ALWAYS_OF_MARKET = {
    "appliance.base.metrics.market",
    "appliance.market",
    "appliance.market.settings",
    "appliance.settings_market",
}
ALWAYS = {
    "appliance.accounts",
    "appliance.accounts.settings",
    "appliance.storage",
    "appliance.storage.settings",
}


def test_a_serving_process_loads_nothing_of_accounts(spawn: Spawn) -> None:
    process = spawn(PYTHONPROFILEIMPORTTIME="1", DB_HOST="db.example", REDIS_HOST="redis.example")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    request = urllib.request.Request(
        f"{process.base_url}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200
    loaded = {
        line.rpartition("|")[2].strip()
        for line in process.text().splitlines()
        if line.startswith("import time:")
    }
    assert "appliance.app" in loaded
    assert {name for name in loaded if name.partition(".")[0] in LIBRARIES} == set()
    ours = {name for name in loaded if name.startswith(("appliance.accounts", "appliance.storage"))}
    assert ours == ALWAYS
    assert {name for name in loaded if "market" in name} == ALWAYS_OF_MARKET


def test_with_accounts_alone_nothing_of_the_markets_is_loaded(spawn: Spawn) -> None:
    process = spawn(
        PYTHONPROFILEIMPORTTIME="1",
        ACCOUNTS="1",
        JWT_SECRET="a-secret-of-tests-that-is-long-enough-0123456789",
    )
    with urllib.request.urlopen(f"{process.base_url}/openapi.json", timeout=20) as response:
        assert not [path for path in json.load(response)["paths"] if "/gpu/" in path]
    loaded = {
        line.rpartition("|")[2].strip()
        for line in process.text().splitlines()
        if line.startswith("import time:")
    }
    assert "appliance.build_accounts" in loaded
    assert {name for name in loaded if "market" in name} == ALWAYS_OF_MARKET


async def _raw(running: Running, path: str, body: dict[str, Any]) -> bytes:
    """Return what is on the wire for a request with a static key, without what is never the same."""
    sent = json.dumps({"model": "tiny", **body}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nX-Request-Id: r1\r\n"
        f"Content-Length: {len(sent)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*running.appliance.http_addresses[0])
    writer.write(head.encode() + sent)
    got = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return VARIES.sub(b"", got)


async def test_static_keys_get_the_same_bytes_with_accounts_and_without(start: Start, tmp_path: Path) -> None:
    async with CountingEngine(tokens=3) as engine:
        given = {"BACKENDS": f"e={engine.url}", "APPLIANCE_API_KEYS": KEY}
        plain = await start(STATE_DIR=str(tmp_path / "plain"), **QUICK, **given)
        paying = await begin_paying(start, tmp_path, **given)
        for path, body in [*DIALECTS.values(), ("/v1/embeddings", {"input": "one"})]:
            for stream in (False, True):
                for query in ("", "?q=1"):
                    both = [
                        await _raw(each, path + query, body | {"stream": stream}) for each in (plain, paying)
                    ]
                    assert both[0] == both[1]
                    assert both[0].startswith(b"HTTP/1.1 200 ")
        asked = [json.dumps(body) for body in engine.asked]
        assert asked[0::2] == asked[1::2]
