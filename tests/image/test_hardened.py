"""With a read-only root and three capabilities: it serves, redirects 14444, and has nothing left of root."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.image.box import HARDENED, Box, Reply, answer_of, chat, docker

SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
NOTHING = "0000000000000000"


def test_it_is_healthy_and_says_who_answers(hardened: Box) -> None:
    state = hardened.ask("GET", "/healthz").json
    assert state["ok"] is True
    assert state["demo"] is True
    assert {step["name"]: step["outcome"] for step in state["steps"]}["nat"] == "done"


def test_it_answers_a_chat_in_one_piece_and_as_a_stream(hardened: Box) -> None:
    assert "Hello image" in answer_of(hardened.ask("POST", "/v1/chat/completions", chat("Hello image")))
    stream = hardened.ask("POST", "/v1/chat/completions", chat("Hello image", stream=True))
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert "Hello image" in "".join(
        json.loads(e)["choices"][0]["delta"].get("content") or ""
        for e in events[:-1]
        if json.loads(e)["choices"]
    )


def test_it_answers_in_ollamas_dialect(hardened: Box) -> None:
    reply = hardened.ask("POST", "/api/chat", chat("Hello image", stream=False))
    assert "Hello image" in reply.json["message"]["content"]


def test_other_containers_reach_it_on_its_port(hardened: Box) -> None:
    done = hardened.ask_from_outside("GET", "/healthz")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == 200


@pytest.mark.parametrize("port", [14444, 50051])
def test_other_containers_reach_neither_the_workers_port_nor_control(hardened: Box, port: int) -> None:
    done = hardened.ask_from_outside("GET", "/healthz", port=port)
    assert done.returncode != 0
    assert "ConnectionRefusedError" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_port_14444_is_redirected_for_callers_inside(hardened: Box, host: str) -> None:
    assert "Hello image" in answer_of(
        hardened.ask("POST", "/v1/chat/completions", chat("Hello image"), host=host, port=14444)
    )


def test_port_14444_is_a_rule_and_no_listener(hardened: Box) -> None:
    listening = hardened.run("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").stdout
    assert f":{14000:04X} " in listening
    assert f":{14444:04X} 00000000:0000 0A" not in listening
    assert hardened.ask("GET", "/healthz").json["nat"]["outcome"] == "rule"


def test_every_process_of_the_service_has_stepped_down(hardened: Box) -> None:
    rows = hardened.processes()
    assert [row["pid"] for row in rows if row["command"][:1] == ["tini"]] == [1]
    assert any(row["command"][1:] == ["-m", "appliance", "serve"] for row in rows)
    for row in rows:
        assert row["Uid"].split() == ["10001"] * 4, row["command"]
        assert row["Gid"].split() == ["10001"] * 4, row["command"]
        assert row["Groups"].split() in ([], ["10001"]), row["command"]
        assert {name: row[name] for name in SETS} == dict.fromkeys(SETS, NOTHING), row["command"]
        assert row["NoNewPrivs"] == "1", row["command"]


def test_with_setpcap_the_bounding_set_is_emptied_too(start: Callable[..., Box]) -> None:
    box = start(*HARDENED, "--cap-add", "SETPCAP").wait_health()
    assert {row["CapBnd"] for row in box.processes()} == {NOTHING}


def test_with_dockers_own_defaults_it_steps_down_as_well(start: Callable[..., Box]) -> None:
    box = start().wait_health()
    for row in box.processes():
        assert row["Uid"].split() == ["10001"] * 4
        assert {name: row[name] for name in (*SETS, "CapBnd")} == dict.fromkeys((*SETS, "CapBnd"), NOTHING)
        assert row["NoNewPrivs"] == "1"


def test_the_root_file_system_is_read_only_and_the_state_folder_is_not(hardened: Box) -> None:
    assert hardened.run("touch", "/etc/x", is_checked=False).returncode != 0
    docker(
        "exec",
        "--user",
        "10001",
        hardened.name,
        "sh",
        "-c",
        "touch /var/lib/appliance/x && rm /var/lib/appliance/x",
    )


def test_machine_id_outlasts_restart_and_recreation(start: Callable[..., Box], volume: str) -> None:
    mount = f"{volume}:/var/lib/appliance"
    first = start(*HARDENED, "-v", mount).wait_health()
    machine_id = first.machine_id()
    assert len(machine_id) == 32
    assert set(machine_id) <= set("0123456789abcdef")
    docker("restart", "-t", "30", first.name)
    assert first.wait_health().machine_id() == machine_id
    first.close()
    assert start(*HARDENED, "-v", mount).wait_health().machine_id() == machine_id
    assert start(*HARDENED).wait_health().machine_id() != machine_id


def test_sigterm_lets_a_running_answer_finish_and_ends_with_0(start: Callable[..., Box]) -> None:
    box = start(*HARDENED).wait_health()
    with ThreadPoolExecutor(1) as pool:
        # From outside: a caller inside would be ended together with the container, perhaps before it has told what it got.
        reply = pool.submit(
            box.ask_from_outside, "POST", "/v1/chat/completions", chat("demo: slow 4"), patience_s=30
        )
        while box.ask("GET", "/healthz").json["in_flight"] < 1:  # the question itself does not count
            assert not reply.done(), reply.result()
        docker("stop", "-t", "40", box.name)
        done = reply.result()
        assert done.returncode == 0, done.stderr
        assert Reply(**json.loads(done.stdout)).status == 200
    assert box.exit_code == 0, box.logs()


def test_sigterm_while_it_is_still_getting_ready_is_not_ignored(start: Callable[..., Box]) -> None:
    box = start(*HARDENED)
    docker("stop", "-t", "40", box.name)
    assert box.exit_code in {0, 143}, box.logs()  # 137 would mean that it had to be killed


def test_the_health_check_notices_a_drained_appliance(start: Callable[..., Box]) -> None:
    box = start(*HARDENED).wait_health()
    box.run("python3", "-m", "appliance", "ctl", "drain")
    box.wait_health("unhealthy")
    box.run("python3", "-m", "appliance", "ctl", "resume")
    box.wait_health("healthy")


def test_worker_has_a_home_but_no_privileges_and_no_secrets(
    start: Callable[..., Box],
) -> None:
    words = "id=$(id -u) home=$(touch $HOME/x && echo writable) seen=$(env | grep -c NOVITA_API_KEY)"
    box = start(
        *HARDENED,
        "-e",
        "NOVITA_API_KEY=sk-never-for-workers",
        "-e",
        f"WORKER_COMMAND=sh -c 'echo {words}; sleep 1000'",
    ).wait_health()
    box.wait_log("id=10001 home=writable seen=0")
    docker("stop", "-t", "40", box.name)
    assert box.exit_code == 0, box.logs()


def test_root_that_cannot_step_down_is_refused_with_the_remedy(image: str) -> None:
    done = docker("run", "--rm", "--cap-drop", "ALL", image, is_checked=False)
    assert done.returncode == 77
    assert "--cap-add SETUID --cap-add SETGID" in done.stderr


def test_nat_that_must_be_and_cannot_be_stops_it_with_the_remedy(image: str) -> None:
    done = docker(
        "run",
        "--rm",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "SETUID",
        "--cap-add",
        "SETGID",
        "-e",
        "NAT_REDIRECT=on",
        image,
        is_checked=False,
    )
    assert done.returncode == 1
    assert "--cap-add NET_ADMIN" in done.stderr
