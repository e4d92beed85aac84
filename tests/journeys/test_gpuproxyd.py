"""aiserve-gpuproxyd and its administrator's program as their README has them: on SQLite, and on PostgreSQL with Redis."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journeys.running import free_port
from tests.redis_server import RedisServer, redis_server
from tests.storage_servers import PostgresServer, postgres_server

__all__ = ["postgres_server", "redis_server"]
ROOT = Path(__file__).parents[2]
DAEMON = "import sys; from appliance.gpuproxyd import main; sys.exit(main())"
ADMIN = "import sys; from appliance.admin.program import main; sys.exit(main())"
SECRET = "0f3d9a1c7b5e2846a0c4d8e6f2b19375"
TOKEN = "control-token-of-the-test"
README_COMMANDS = [
    ("migrate",),
    ("users",),
    ("create-user", "user@example.com", "password123", "John Doe"),
    ("make-admin", "user@example.com"),
    ("create-apikey", "user@example.com", "Production Key"),
    ("usage", "user@example.com"),
    ("stats",),
]
SAID = [
    "Database migration completed successfully",
    "Total: ",
    "User created successfully",
    "User John Doe (user@example.com) is now an admin",
    "Save this API key securely. It will not be shown again.",
    "Requests: ",
    "Total Users: 1",
]


class Folder:
    """A working folder with `.env`, where both programs are run."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.folder, self.port, self.control = folder, free_port(), free_port()
        self.daemon: subprocess.Popen[bytes] | None = None
        lines = {
            "SERVER_HOST": "127.0.0.1",
            "SERVER_PORT": f"{self.port}    # as the example has comments",
            "GRPC_PORT": str(free_port()),
            "VASTAI_API_KEY": "your-vast-ai-api-key",
            "VASTAI_API_URL": "http://127.0.0.1:9",  # no market listens there
            "ENVIRONMENT": "development",
            "JWT_SECRET": SECRET,
            "STATE_DIR": str(folder / "state"),
            "MACHINE_ID_PATH": str(folder / "machine-id"),
            "GPU_SPOOF_STATE_DIR": str(folder / "gpu"),
            "NAT_REDIRECT": "off",
            "LOG_FORMAT": "json",
            "CONTROL_PORT": str(self.control),
            "CONTROL_TOKEN": TOKEN,
            "UNPRICED": "free",
            **more,
        }
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        self.environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def admin(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ADMIN, *words],
            cwd=self.folder,
            env=self.environ | environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def done(self, *words: str, stdin: str = "") -> str:
        result = self.admin(*words, stdin=stdin)
        assert result.returncode == 0, result.stderr
        return result.stdout

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *flags: str) -> None:
        with (self.folder / "log").open("wb") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-c", DAEMON, *flags],
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 20
        while self.ask("GET", "/healthz")[0] != 200:
            assert self.daemon.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def stop(self) -> int:
        if self.daemon is None:
            return 0
        self.daemon.send_signal(signal.SIGTERM)
        code = self.daemon.wait(20)
        self.daemon = None
        return code

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **named})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def chat(self, key: str) -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        return self.ask("POST", "/v1/chat/completions", body, X_API_Key=key)[0]


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, DB_TYPE="sqlite", DB_NAME="gpuproxy.db")
    yield folder
    folder.stop()


@pytest.fixture
def on_postgres(
    tmp_path: Path, postgres_server: PostgresServer, redis_server: RedisServer
) -> Iterator[Folder]:
    name = f"journey_{os.getpid()}_{free_port()}"
    asyncio.run(postgres_server.sql(f"CREATE DATABASE {name}"))
    folder = Folder(
        tmp_path,
        **postgres_server.environ(name),
        REDIS_HOST="127.0.0.1",
        REDIS_PORT=str(redis_server.port),
        SESSION_MODE="balanced",
    )
    yield folder
    folder.stop()
    asyncio.run(postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["on_sqlite", "on_postgres"])
def folder(request: pytest.FixtureRequest) -> Folder:
    """Both, one after the other."""
    found: Folder = request.getfixturevalue(request.param)
    return found


def test_the_readmes_commands_work_word_for_word(folder: Folder) -> None:
    key = ""
    for words, text in zip(README_COMMANDS, SAID, strict=True):
        said = folder.done(*words)
        assert text in said
        key = match[1] if (match := re.search(r"^Key: (.+)$", said, re.M)) else key
    folder.start()
    assert f"127.0.0.1:{folder.port}" in folder.log
    assert "aiserve-gpuproxyd: without effect in this version: ENVIRONMENT\n" in folder.log
    assert folder.chat(key) == 200
    assert folder.chat("apk_unknownn_" + "x" * 43) == 401
    # while it serves: on SQLite over its control API, on PostgreSQL on the database
    assert "Production Key" in folder.done("keys", "user@example.com")
    folder.done("create-user", "second@example.com", "-", "Second", stdin="a-secret-of-stdin\n")
    said = folder.done("create-apikey", "second@example.com", "k")
    second = re.search(r"^Key: (.+)$", said, re.M)
    assert second is not None
    assert folder.chat(second[1]) == 200
    folder.done("revoke-apikey", "second@example.com", second[1][:12])
    end = time.monotonic() + 5
    while (status := folder.chat(second[1])) == 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert status == 401
    folder.done("grant", "second@example.com", "5")
    assert "Total Users: 2" in folder.done("stats")
    assert "the money is right" in folder.done("audit")
    assert folder.stop() == 0
    written = folder.log + "".join(
        path.read_text(errors="replace")
        for path in folder.folder.rglob("*")
        if path.is_file() and path.name != ".env"
    )
    for secret in ("a-secret-of-stdin", "password123", SECRET, TOKEN, key, second[1]):
        assert secret not in written


def test_what_the_administrator_changes_holds_while_it_serves(folder: Folder, tmp_path: Path) -> None:
    folder.done("migrate")
    folder.start()
    user = {"email": "a@example.com", "password": "a long password"}
    assert folder.ask("POST", "/api/v1/auth/register", user | {"name": "A"})[0] == 201
    status, said = folder.ask("POST", "/api/v1/auth/login", user)
    assert status == 200, said
    access = json.loads(said)["tokens"]["access_token"]

    def me() -> int:
        return folder.ask("GET", "/api/v1/user", Authorization=f"Bearer {access}")[0]

    # credits and prices
    match = re.search(r"^Key: (.+)$", folder.done("create-apikey", "a@example.com", "k"), re.M)
    assert match is not None
    key = match[1]
    assert folder.chat(key) == 200
    prices = tmp_path / "prices.json"
    prices.write_text('{"prices": [{"model": "*", "in": "1.00", "out": "1.00"}]}')
    folder.done("prices", "set", str(prices))
    until(lambda: folder.chat(key), 402)
    folder.done("grant", "a@example.com", "5")
    until(lambda: folder.chat(key), 200)
    # a user who may not call, and its sessions
    assert me() == 200
    assert "Total: 1 sessions" in folder.done("sessions", "a@example.com")
    assert folder.done("end-sessions", "a@example.com") == "Ended sessions: 1\n"
    until(me, 401)
    folder.done("deactivate", "a@example.com")
    until(lambda: folder.chat(key), 401)
    folder.done("activate", "a@example.com")
    until(lambda: folder.chat(key), 200)
    assert folder.stop() == 0
    assert "the money is right" in folder.done("audit")
    usage = folder.done("usage", "a@example.com")
    assert re.search(r"^m +\d", usage, re.M) or "COST" in usage


def until(ask: Callable[[], int], status: int, within_s: float = 5.0) -> None:
    """Ask until the answer has a status: it is 2 s at most by the contract."""
    end = time.monotonic() + within_s
    while (found := ask()) != status:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_sqlite_that_is_held_is_told_with_what_to_do(on_sqlite: Folder) -> None:
    on_sqlite.start()
    denied = on_sqlite.admin("users", CONTROL_TOKEN="another-token-than-that")
    assert denied.returncode == 1
    assert "The token does not match CONTROL_TOKEN." in denied.stderr
    away = on_sqlite.admin("users", CONTROL_PORT=str(free_port()))
    assert away.returncode == 3
    for text in ("Another process uses the database", "--address, CONTROL_TOKEN", "DB_TYPE=postgres"):
        assert text in away.stderr
    assert len(away.stderr.splitlines()) == 1
    migrated = on_sqlite.admin("migrate")
    assert migrated.returncode == 1
    assert "Migration failed: Another process uses the database" in migrated.stderr


def test_an_address_that_is_given_is_used(on_sqlite: Folder, tmp_path: Path) -> None:
    on_sqlite.start()
    environ = {"STATE_DIR": str(tmp_path / "another"), "CONTROL_TOKEN": TOKEN}
    address = f"127.0.0.1:{on_sqlite.control}"
    said = on_sqlite.admin(
        "--address", address, "create-user", "a@example.com", "-", "A", stdin="0123456789", **environ
    )
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "another").exists()
    said = on_sqlite.admin("users", CONTROL_ADDRESS=address, **environ)
    assert "a@example.com" in said.stdout
    gone = on_sqlite.admin("users", CONTROL_ADDRESS=f"127.0.0.1:{free_port()}", **environ)
    assert gone.returncode == 3
    assert "No appliance responds at " in gone.stderr


def test_a_password_argument_leaves_the_list_of_processes(on_sqlite: Folder) -> None:
    secret = "a-password-that-must-not-be-seen"
    process = subprocess.Popen(
        [sys.executable, "-c", ADMIN, "create-user", "a@example.com", secret, "A"],
        cwd=on_sqlite.folder,
        env=on_sqlite.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen = []
    while process.poll() is None:
        seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
    assert process.returncode == 0
    hidden = [line for line in seen if b"*" * len(secret) in line]
    assert hidden
    assert secret.encode() not in b"".join(seen[seen.index(hidden[0]) :])
    assert b"a@example.com" in hidden[-1]


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["-x"], 2, "flag provided but not defined: -x"),
        (["serve"], 2, "there are no commands, and 'serve' is no flag"),
        (["-h"], 0, "usage: aiserve-gpuproxyd [flags]"),
        (["--version"], 0, "0."),
        ([], 78, "JWT_SECRET=(hidden): allowed: at least 32 characters"),
    ],
)
def test_wrong_flags_and_settings_are_refused(
    on_sqlite: Folder, flags: list[str], code: int, text: str
) -> None:
    environ = on_sqlite.environ | {"JWT_SECRET": "changeme-generate-a-secure-random-string"}
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, *flags],
        cwd=on_sqlite.folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "changeme" not in done.stdout + done.stderr


def test_modes_for_developers_change_the_log(on_sqlite: Folder) -> None:
    on_sqlite.start("-dv", "--debug-mode")
    assert not [line for line in on_sqlite.log.splitlines() if line.startswith("{")]
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "ctl", "settings", "--set-only"],
        env=on_sqlite.environ | {"CONTROL_ADDRESS": f"127.0.0.1:{on_sqlite.control}", "CONTROL_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "LOG_LEVEL\tdebug\t" in done.stdout, done.stderr
    assert "LOG_FORMAT\tconsole\t" in done.stdout
