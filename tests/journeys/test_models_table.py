"""What the table says is what runs, on real llama-servers: preload, replicas, idle timeout, changes."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.journeys.model_tables import Managed, ManagedAppliance, Stopwatch, runs, wrapper
from tests.journeys.running import until
from tests.tools.tiny_models import REPLY

LONG = 3000  # tokens: two seconds or three, so that a slow machine sees the stream run


# ---- at the start


async def test_preload_models_are_loaded_without_a_request(managed: Managed) -> None:
    appliance = await managed("a", "b", "c", preload_models=["b", "a"], preload_delay_sec=1)
    watch = Stopwatch()
    assert await until(lambda: appliance.statuses() == {"a": "ready", "b": "ready", "c": "off"})
    assert watch.s > 0.5  # one after the other
    assert appliance.manager.counts().by_model == {"a": 1, "b": 1, "c": 0}
    assert await appliance.chat("a") == REPLY
    assert appliance.manager.counts().loads == 2


async def test_preloading_fills_the_places_and_pushes_nobody_out(managed: Managed) -> None:
    appliance = await managed(
        "a", "b", "c", preload_models=["*"], preload_delay_sec=1, max_concurrent_models=1
    )
    assert await until(lambda: appliance.status("a") == "ready")
    pid = appliance.pid("a")
    await asyncio.wait_for(_looked(appliance, "b"), 5)
    assert appliance.statuses() == {"a": "ready", "b": "off", "c": "off"}
    assert appliance.pid("a") == pid
    assert await appliance.chat("c") == REPLY  # a request may


async def _looked(appliance: ManagedAppliance, alias: str) -> None:
    """Wait until it was the turn of a model to be preloaded."""
    while not (
        appliance.manager.model_state(alias).background_load
        or appliance.manager.model_state(alias).wait_reason
    ):
        await asyncio.sleep(0.02)


# ---- replicas


async def test_two_replicas_share_the_load(managed: Managed) -> None:
    appliance = await managed("a", "b", a={"replicas": 2}, max_concurrent_models=1)
    streams = [await appliance.start_stream("a", LONG)]
    with appliance.paused("a"):
        streams.append(asyncio.create_task(appliance.stream("a", 100)))
        assert await until(lambda: appliance.active("a") == 2)
        assert (
            await appliance.stream("a", 100)
        ).is_whole  # both slots are taken: a second llama-server is started
        assert [runner.active for runner in appliance.runners("a")] == [2, 0]
        assert appliance.manager.counts().by_model["a"] == 2
        assert len({runner.port for runner in appliance.runners("a")}) == 2
    assert all(result.is_whole for result in await asyncio.gather(*streams))
    with appliance.paused("a"):
        four = [asyncio.create_task(appliance.chat("a")) for _ in range(4)]
        assert await until(lambda: [runner.active for runner in appliance.runners("a")] == [2, 2])
    assert await asyncio.gather(*four) == [REPLY] * 4
    assert appliance.manager.counts().by_model["a"] == 2
    assert len(appliance.own_servers()) == 2
    assert await appliance.chat("b") == REPLY  # all of them give way
    assert await until(lambda: len(appliance.own_servers()) == 1)


# ---- how long it stays


async def test_keep_alive_of_a_request_says_how_long_the_model_stays(managed: Managed) -> None:
    appliance = await managed("a")
    status, _, value = await appliance.ask("a", path="/api/chat", stream=False, keep_alive=1)
    assert (status, value["message"]["content"]) == (200, REPLY)
    pid, watch = appliance.pid("a"), Stopwatch()
    expires_at_s = appliance.manager.model("a").runners[0].expires_at_s
    assert expires_at_s is not None
    assert await until(lambda: not runs(pid))
    assert 0.8 < watch.s < 3.0
    assert await until(lambda: appliance.status("a") == "off")
    assert appliance.manager.counts().ejects == 1


async def test_keep_alive_0_unloads_after_the_running_request(managed: Managed) -> None:
    appliance = await managed("a", "b")
    await appliance.ask("b", path="/api/chat", stream=False, keep_alive=0)
    assert await until(lambda: appliance.status("b") == "off", seconds=1)
    stream = await appliance.start_stream("a", LONG)
    pid = appliance.pid("a")
    with appliance.paused("a"):
        asked = asyncio.create_task(appliance.ask("a", path="/api/generate", keep_alive=0, stream=False))
        assert await until(lambda: appliance.status("a") == "stopping")
        assert not stream.done()
    assert (await stream).is_whole
    status, _, value = await asked
    assert (status, value["done_reason"]) == (200, "unload")
    assert await until(lambda: not runs(pid))
    assert appliance.status("a") == "off"


async def test_a_negative_keep_alive_a_pin_and_the_most_asked_for_stay(managed: Managed) -> None:
    """Each of them is asked with keep_alive 1 first.

    What stays although that time is over, stays for its own reason.
    """
    appliance = await managed("ever", "pinned", "brief", pinned={"pinned": True})
    await asyncio.gather(
        *(
            appliance.ask(alias, path="/api/chat", stream=False, keep_alive=1)
            for alias in ("ever", "pinned", "brief")
        )
    )
    await appliance.ask("ever", path="/api/chat", stream=False, keep_alive=-1)
    assert await until(lambda: appliance.status("brief") == "off", seconds=5)
    assert appliance.statuses() == {"ever": "ready", "pinned": "ready", "brief": "off"}
    stays = {view.alias: view.runners[0].expires_at_s for view in appliance.manager.models() if view.runners}
    assert stays == {"ever": None, "pinned": None}
    appliance.manager.pin("pinned", pinned=False)  # its second is long over
    assert await until(lambda: appliance.status("pinned") == "off", seconds=2)
    assert appliance.status("ever") == "ready"


async def test_idle_timeout_spares_the_most_requested_models(
    managed: Managed,
) -> None:
    """A minute is the least that the table takes.

    The llama-servers are said to have been idle for so long already.
    """
    appliance = await managed("a", "b", "c", idle_timeout_sec=60, keep_warm_models=1)
    for alias in "aabc":
        assert await appliance.chat(alias) == REPLY
    for alias in "ab":
        appliance.runners(alias)[0].idle_since_s -= 60
    appliance.runners("c")[0].idle_since_s -= 55
    appliance.manager.pin("c", pinned=False)  # any event: it is the manager's turn
    assert await until(lambda: appliance.status("b") == "off")
    assert (appliance.status("a"), appliance.status("c")) == ("ready", "ready")
    stays_s = appliance.manager.retention.expires_in_s(
        appliance.runners("c")[0], appliance.manager.model_state("c"), appliance.manager.clock.monotonic_s()
    )
    assert stays_s is not None
    assert 0 < stays_s <= 5


# ---- changed while it runs


async def test_changed_model_ends_its_requests_and_is_reloaded(managed: Managed) -> None:
    appliance = await managed("a", "b", "c", max_concurrent_models=3)
    assert await asyncio.gather(*map(appliance.chat, "abc")) == [REPLY] * 3
    stays, old, gone = appliance.pid("b"), appliance.pid("a"), appliance.pid("c")
    stream = await appliance.start_stream("a", LONG)
    with appliance.paused("a"):
        result = await appliance.change(a={"params": {"n_ctx": 4096, "parallel_override": 1}}, c=None, d={})
        assert result.applied, result
        assert await appliance.chat("d") == REPLY  # added
        assert await appliance.chat("b") == REPLY
        assert appliance.pid("b") == stays  # untouched
        status, _, value = await appliance.ask("c")  # removed
        assert (status, value["error"]["code"]) == (404, "model_not_found")
        assert await until(lambda: not runs(gone))
        assert runs(old)
        later = asyncio.create_task(appliance.chat("a"))  # changed: by a llama-server of the new kind
    assert (await stream).is_whole
    assert await later == REPLY
    assert await until(lambda: not runs(old))
    assert await until(lambda: [runner.slots for runner in appliance.runners("a")] == [1])
    status, _, listed = await appliance.ask("", path="/v1/models", method="GET")
    assert {row["id"] for row in listed["data"]} == {"a", "b", "d"}


async def test_requests_waiting_for_a_changed_model_get_the_new_one(managed: Managed) -> None:
    appliance = await managed("a", "b", max_concurrent_models=1, a={"params": {"parallel_override": 1}})
    stream = await appliance.start_stream("a", LONG)
    with appliance.paused("a"):
        waiting = [asyncio.create_task(appliance.chat("a")), asyncio.create_task(appliance.ask("b"))]
        assert await until(lambda: (appliance.queue_length("a"), appliance.queue_length("b")) == (1, 1))
        assert (await appliance.change(a={"params": {"parallel_override": 2}}, b=None)).applied
    assert (await stream).is_whole
    assert await waiting[0] == REPLY
    assert await until(lambda: [runner.slots for runner in appliance.runners("a")] == [2])
    status, _, value = await waiting[1]  # what was taken out cannot be waited for
    assert (status, value["error"]["code"]) == (404, "model_not_found")
    (queue,) = appliance.manager.queues()
    assert (queue.total_requests, queue.total_processed, queue.queue_length) == (2, 2, 0)


async def test_a_table_with_problems_changes_nothing(managed: Managed) -> None:
    appliance = await managed("a")
    assert await appliance.chat("a") == REPLY
    pid = appliance.pid("a")
    result = await appliance.change(a={"params": {"n_ctx": 1}})
    assert not result.applied
    assert "n_ctx" in str(result.problems)
    assert await appliance.chat("a") == REPLY
    assert appliance.pid("a") == pid


# ---- what those who wait are result


@pytest.fixture
def slow(tmp_path: Path, llama_binary: str) -> Path:
    """A llama-server that takes a second longer to start."""
    return wrapper(tmp_path, llama_binary, "sleep 1.2")


async def test_waiting_stream_gets_heartbeats_and_the_reason(managed: Managed, slow: Path) -> None:
    appliance = await managed("a", binary=slow, variables={"HEARTBEAT_S": "0.2"})
    first, second = await asyncio.gather(appliance.stream("a"), appliance.stream("a"))
    assert sorted(result.headers["X-Queue-Position"] for result in (first, second)) == ["1", "2"]
    for result in (first, second):
        assert (result.status, result.end, result.text, result.other) == (200, "done", REPLY, [])
        assert len(result.comments) >= 3
        assert set(result.comments) == {b": heartbeat\n"}
        assert result.headers["X-Model-Status"] in {"starting", "loading"}
        assert 0 <= int(result.headers["X-Model-Load-Progress"]) < 100
        assert float(result.headers["X-Model-Expected-In"]) >= 0
    quick = await appliance.stream("a")
    assert (quick.text, quick.comments) == (REPLY, [])
    assert not {name for name in quick.headers if name.startswith(("X-Queue", "X-Model"))}


async def test_nothing_of_the_wait_appears_inside_an_answer(managed: Managed, slow: Path) -> None:
    """Ollama's streams get spaces before a line, and whole answers have no place for anything."""
    appliance = await managed("a", binary=slow, variables={"HEARTBEAT_S": "0.2"})
    (status, _, value), (also, headers, text) = await asyncio.gather(
        appliance.ask("a"), appliance.ask("a", path="/api/chat", stream=True)
    )
    assert (status, value["choices"][0]["message"]["content"]) == (200, REPLY)
    assert also == 200
    assert text.startswith("   ")
    assert headers["X-Model-Status"] in {"starting", "loading"}
    lines = [json.loads(line) for line in text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == REPLY
    assert set(lines[0]) == {"model", "created_at", "message", "done"}
    assert "heartbeat" not in text


async def test_models_are_listed_with_what_their_files_say(managed: Managed) -> None:
    appliance = await managed("a", "embed")
    _, _, listed = await appliance.ask("a", path="/v1/models", method="GET")
    rows = {row["id"]: row for row in listed["data"]}
    assert (rows["a"]["capabilities"], rows["embed"]["capabilities"]) == (
        ["completion", "tools"],
        ["embedding"],
    )
    facts = {name: rows["a"]["meta"][name] for name in ("n_ctx_train", "n_embd", "ftype")}
    assert facts == {"n_ctx_train": 8192, "n_embd": 384, "ftype": "F16"}
    assert rows["a"]["meta"]["n_params"] > 1_000_000 < rows["a"]["meta"]["size"]
    _, _, one = await appliance.ask("a", path="/v1/models/a", method="GET")
    assert one == rows["a"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_ollamas_answers_say_how_long_loading_took(managed: Managed, slow: Path, stream: bool) -> None:
    appliance = await managed("a", "embed", binary=slow)
    for alias, path, more in (
        ("a", "/api/chat", {}),
        ("embed", "/api/embed", {"input": "hello"}),
    ):
        _, _, first = await appliance.ask(alias, path=path, stream=stream, **more)
        _, _, again = await appliance.ask(alias, path=path, stream=stream, **more)
        last = first if isinstance(first, dict) else json.loads(first.splitlines()[-1])
        next_last = again if isinstance(again, dict) else json.loads(again.splitlines()[-1])
        assert 1_000_000_000 < last["load_duration"] <= last["total_duration"]
        rest = last.get("prompt_eval_duration", 0) + last.get("eval_duration", 0)
        assert rest <= last["total_duration"] - last["load_duration"]
        assert "load_duration" not in next_last
        assert next_last["total_duration"] < 1_000_000_000


async def test_who_only_loads_gets_spaces_too(managed: Managed, slow: Path) -> None:
    appliance = await managed("a", binary=slow, variables={"HEARTBEAT_S": "0.2"})
    status, _, text = await appliance.ask("a", path="/api/generate", messages=[], stream=True)
    assert (status, text[:3], text.count("\n")) == (200, "   ", 1)
    assert (json.loads(text)["done_reason"], json.loads(text)["response"]) == ("load", "")
