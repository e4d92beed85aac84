"""The appliance in a process of its own: how it starts, what it says, how it ends."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.journeys.running import Process, Spawn, free_port


def post(running: Process, text: str, *, stream: bool = False, timeout: float = 20):
    body = json.dumps({"stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
    return urllib.request.urlopen(
        urllib.request.Request(running.base_url + "/v1/chat/completions", body), timeout=timeout
    )


def wait(running: Process, seconds: float = 15) -> int:
    return running.process.wait(seconds)


def test_it_says_that_it_is_the_demo_engine_and_what_to_try(appliance: Process) -> None:
    with urllib.request.urlopen(appliance.base_url + "/healthz") as answer:
        value = json.loads(answer.read())
    assert value["ok"] is value["demo"] is True
    assert {"public_model", "upstream_base", "aliases", "novita_endpoints"} <= set(value)
    text = appliance.text()
    assert "demo_engine" in text
    assert text.count("curl ") == 3
    with post(appliance, "x") as answer:
        assert json.loads(answer.read())["choices"][0]["message"]["content"].startswith("[demo engine]")


def test_a_process_without_models_loads_no_library_that_it_does_not_need(spawn: Spawn) -> None:
    running = spawn(PYTHONPROFILEIMPORTTIME="1")
    with post(running, "Hello") as answer:
        assert answer.status == 200
    running.process.terminate()
    assert wait(running) == 0
    lines = [line for line in running.text().splitlines() if "import time:" in line]
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert {"structlog", "aiohttp", "grpc"} <= loaded
    unneeded = {"huggingface_hub", "msgpack", "obstore", "pygments", "pynvml", "pyroute2", "redis", "regex"}
    unneeded |= {"alembic", "argon2", "asyncpg", "bcrypt", "jwt", "sqlalchemy", "sqlite3"}  # for accounts
    unneeded |= {"rich.console", "typer", "yaml", "zmq"}  # `rich` alone: structlog looked for it
    assert loaded & unneeded == set()


def test_sigterm_lets_a_running_answer_end_then_exits_with_0(appliance: Process) -> None:
    found = []
    asking = threading.Thread(target=lambda: found.append(post(appliance, "demo: slow 1").read()))
    asking.start()
    time.sleep(0.4)
    appliance.process.send_signal(signal.SIGTERM)
    assert wait(appliance) == 0
    asking.join()
    assert b"demo: slow 1" in found[0]


def test_a_second_sigterm_hurries(spawn: Spawn) -> None:
    running = spawn(SHUTDOWN_GRACE_S="60")
    asking = threading.Thread(
        target=lambda: _ignore(lambda: post(running, "demo: slow 50", timeout=60).read())
    )
    asking.start()
    time.sleep(0.4)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGTERM)
    assert wait(running) == 0
    asking.join()


def test_the_grace_ends_what_does_not_end(spawn: Spawn) -> None:
    running = spawn(SHUTDOWN_GRACE_S="0.3")
    asking = threading.Thread(
        target=lambda: _ignore(lambda: post(running, "demo: stall", stream=True, timeout=60).read())
    )
    asking.start()
    time.sleep(0.4)
    running.process.send_signal(signal.SIGINT)
    assert wait(running) == 0
    asking.join()
    assert '"finish":"cut_off"' in running.text()


def test_bad_settings_end_it_with_78_and_all_of_them(spawn: Spawn) -> None:
    running = spawn(wait=False, STREAM_CHUNK_SIZE="0", GPU_MODE="fake")
    assert wait(running) == 78
    assert "STREAM_CHUNK_SIZE=0" in running.text()
    assert "GPU_MODE=fake" in running.text()


def test_a_second_one_with_the_same_state_is_refused(appliance: Process, spawn: Spawn) -> None:
    pid = appliance.process.pid
    second = spawn(wait=False)
    assert wait(second) == 1
    assert json.loads(second.text().splitlines()[-1])["reason"].endswith(
        f"is in use by another appliance, process {pid}. "
        "Stop that one, or give this one a STATE_DIR of its own"
    )
    assert "Traceback" not in second.text()
    with post(appliance, "x") as answer:
        assert answer.status == 200
    appliance.process.kill()
    appliance.process.wait()
    third = spawn()
    with post(third, "x") as answer:
        assert answer.status == 200


def test_a_port_in_use_is_said_in_one_sentence(appliance: Process, spawn: Spawn, tmp_path: Path) -> None:
    port = appliance.base_url.rpartition(":")[2]
    running = spawn(wait=False, PROXY_PORT=port, STATE_DIR=str(tmp_path / "other"))
    assert wait(running) == 1
    owner = f"Process {appliance.process.pid} ("
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. {owner}" in running.text()
    assert "listens there: end it, or set PROXY_PORT to another port." in running.text()
    assert "Traceback" not in running.text()


def test_no_secret_reaches_log_or_command_line(spawn: Spawn) -> None:
    secrets = {
        "NOVITA_API_KEY": "sk_leaky_0123456789",
        "APPLIANCE_API_KEYS": "leaky-client-key",
        "CONTROL_TOKEN": "leaky-control-token",
    }
    running = spawn(
        NOVITA_OPENAI_ENDPOINTS=f"http://127.0.0.1:{free_port()}/v1", LOG_LEVEL="debug", **secrets
    )
    for key in ("leaky-client-key", "sk_leaky_0123456789"):
        request = urllib.request.Request(
            running.base_url + "/v1/chat/completions",
            json.dumps(
                {"model": "sk_leaky_0123456789", "messages": [{"role": "user", "content": "x"}]}
            ).encode(),
            {"Authorization": f"Bearer {key}"},
        )
        _ignore(lambda request=request: urllib.request.urlopen(request, timeout=10))
    running.process.terminate()
    assert wait(running) == 0
    assert '"status":502' in running.text()
    assert "leaky" not in running.text()


def test_healthcheck_tells_by_its_exit_code(appliance: Process) -> None:
    port = appliance.base_url.rpartition(":")[2]
    command = [sys.executable, "-m", "appliance", "healthcheck"]
    done = subprocess.run(
        command,
        env={"PROXY_PORT": port, "PROXY_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "healthy: serving\n")
    done = subprocess.run(
        command, env={"PROXY_PORT": str(free_port())}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1


def test_the_worker_starts_when_it_answers_and_ends_with_it(spawn: Spawn) -> None:
    running = spawn(WORKER_COMMAND="sh -c 'echo worker here; sleep 60'")
    assert _soon(lambda: "worker here" in running.text())
    running.process.terminate()
    assert wait(running) == 0


def _soon(condition, seconds: float = 10) -> bool:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return True
        time.sleep(0.05)
    return False


def _ignore(call) -> None:
    try:
        call()
    except OSError:
        pass
    except Exception as exc:
        assert "IncompleteRead" in repr(exc) or "RemoteDisconnected" in repr(exc)


def test_a_control_port_in_use_names_the_process_too(appliance: Process, spawn: Spawn, tmp_path) -> None:
    port = appliance.control_address.rpartition(":")[2]
    running = spawn(wait=False, CONTROL_PORT=port, STATE_DIR=str(tmp_path / "other"))
    assert wait(running) == 1
    owner = f"Process {appliance.process.pid} ("
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. {owner}" in running.text()
    assert "set CONTROL_PORT to another port." in running.text()


def test_at_warning_only_warnings_are_logged(spawn: Spawn) -> None:
    running = spawn(LOG_LEVEL="warning")
    with post(running, "x") as answer:
        assert answer.status == 200
    running.process.terminate()
    assert wait(running) == 0
    assert '"event":"request"' not in running.text()


def test_at_warning_access_lines_can_be_asked_for(spawn: Spawn) -> None:
    running = spawn(LOG_LEVEL="warning", ACCESS_LOG="1")
    with post(running, "x") as answer:
        assert answer.status == 200
    running.process.terminate()
    assert wait(running) == 0
    assert running.text().count('"event":"request"') >= 1


def test_a_model_folder_without_models_gets_no_demo_engine(spawn: Spawn, tmp_path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    running = spawn(MODEL_DIR=str(folder))
    try:
        post(running, "x")
        raise AssertionError("no model, and an answer")
    except urllib.error.HTTPError as error:
        assert error.code == 404
        assert b"There is no model here: no backend has named one, and no model file is" in error.read()
    with urllib.request.urlopen(running.base_url + "/healthz") as answer:
        status = json.loads(answer.read())
    assert status["demo"] is False
    assert any("MODEL_DIR" in text for text in status["warnings"])
    assert "demo engine answers" not in running.text()
