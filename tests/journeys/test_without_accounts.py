"""With ACCOUNTS=0 nothing of accounts, databases and their libraries is loaded in a process that serves."""

import json
import urllib.request

from tests.journeys.running import Spawn

# (greenlet, which SQLAlchemy needs, is loaded by structlog wherever it is installed.)
LIBRARIES = {"sqlalchemy", "alembic", "asyncpg", "sqlite3", "redis", "argon2", "bcrypt", "jwt"}
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
