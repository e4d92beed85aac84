"""An operator's changes: on every backend that is up, or on none."""

import asyncio
from pathlib import Path

import pytest

from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Internal,
    Invalid,
    NotFound,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.wire.types import Unreachable
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.plan import Adapter
from tests.engines.lora_scene import OFF, REFUSED, STYLE, LoraScene, lora_scene

# ---- load


async def test_an_adapter_is_loaded_on_every_backend_of_its_model() -> None:
    async with lora_scene("tiny", "other", "tiny") as scene:
        change = await scene.manager.load(STYLE)
        assert [(name, reply.text) for name, reply in change.replies.items()] == [
            ("e0", "loaded style"),
            ("e2", "loaded style"),
        ]
        assert change.errors == {}
        assert scene.states() == {"e0": "loaded", "e2": "loaded"}
        assert scene.served() == ["e0", "e2"]
        assert scene.dialects[0].adapters == {"style": "/adapters/style"}


async def test_a_second_load_of_the_same_adapter_sends_nothing() -> None:
    async with lora_scene("tiny") as scene:
        await scene.manager.load(STYLE)
        change = await scene.manager.load(STYLE)
        assert (change.replies, scene.commands()) == ({}, [["load style"]])


async def test_if_one_refuses_the_others_unload_it_again() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[1].replies = [REFUSED]
        with pytest.raises(ApplianceError, match=r"e1 refused the adapter 'style' \(HTTP 500\): out of"):
            await scene.manager.load(STYLE)
        assert scene.commands() == [["load style", "unload style"], ["load style"]]
        assert (scene.states(), scene.served(), scene.manager.table.declared) == ({}, [], {})


async def test_what_cannot_be_rolled_back_is_unloaded_later() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[0].replies = [None, REFUSED]
        scene.dialects[1].replies = [REFUSED]
        with pytest.raises(ApplianceError, match="e1 refused"):
            await scene.manager.load(STYLE)
        assert scene.states() == {"e0": "unloading"}
        assert scene.served() == []
        scene.manager.start()
        assert await scene.settles({})
        assert scene.dialects[0].adapters == {}


async def test_partial_load_is_enough_if_one_backend_has_it() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[1].replies = [REFUSED]
        change = await scene.manager.load(STYLE, is_partial=True)
        assert (list(change.replies), list(change.errors)) == (["e0"], ["e1"])
        assert scene.states() == {"e0": "loaded", "e1": "failed"}


async def test_partial_load_fails_if_no_backend_has_it() -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].replies = [REFUSED]
        with pytest.raises(ApplianceError, match="e0 refused"):
            await scene.manager.load(STYLE, is_partial=True)
        assert scene.manager.table.declared == {}


@pytest.mark.parametrize(
    ("adapter", "text", "code"),
    [
        (
            Adapter("style", "/adapters/new", "tiny"),
            "The adapter 'style' exists already, for 'tiny' from /adapters/style; unload it first",
            "adapter_exists",
        ),
        (
            Adapter("own", "/adapters/own", "tiny"),
            "The backend e0 has an adapter 'own' already, from /elsewhere/own; unload it first",
            "adapter_exists",
        ),
        (
            Adapter("tiny", "/adapters/x", "tiny"),
            "'tiny' is the name of a model here; choose another `lora_name`",
            "adapter_exists",
        ),
    ],
)
async def test_a_name_that_is_taken_is_refused(adapter: Adapter, text: str, code: str) -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].adapters["own"] = "/elsewhere/own"
        scene.come_up(0, keeps_adapters=True)
        await scene.manager.load(STYLE)
        with pytest.raises(Conflict, match=text) as raised:
            await scene.manager.load(adapter)
        assert raised.value.code == code
        assert scene.commands() == [["load style"]]


async def test_an_engine_that_names_adapters_by_file_has_another_path() -> None:
    """llama-server lists the files that it was started with, by names of its own."""
    async with lora_scene("tiny") as scene:
        scene.dialects[0].names_adapters = False
        scene.dialects[0].adapters["own"] = "own.gguf"
        scene.come_up(0, keeps_adapters=True)
        await scene.manager.load(Adapter("own", "/adapters/own.gguf", "tiny"))
        assert scene.states("own") == {"e0": "loaded"}


async def test_without_a_backend_that_is_up_nothing_is_declared() -> None:
    async with lora_scene("tiny", "other", down=(0,)) as scene:
        with pytest.raises(Unavailable, match="No backend of the model 'tiny' is up") as raised:
            await scene.manager.load(STYLE)
        assert raised.value.code == "no_backend"
        assert scene.manager.table.declared == {}


async def test_an_adapter_is_changed_by_one_caller_at_a_time() -> None:
    async with lora_scene("tiny") as scene:
        first = asyncio.ensure_future(scene.manager.load(STYLE))
        await asyncio.sleep(0)
        with pytest.raises(Conflict, match="is being loaded or unloaded; try again") as raised:
            await scene.manager.unload("style")
        assert raised.value.code == "adapter_busy"
        await first


async def test_a_change_completes_without_its_caller() -> None:
    async with lora_scene("tiny") as scene:
        caller = asyncio.ensure_future(scene.manager.load(STYLE))
        await asyncio.sleep(0)
        caller.cancel()
        assert await scene.settles({"e0": "loaded"})


async def test_a_bug_of_ours_is_an_internal_error() -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].replies = [ZeroDivisionError("bug")]
        with pytest.raises(Internal, match="'style' could not be changed: internal error"):
            await scene.manager.load(STYLE)
        await scene.manager.load(STYLE)  # and the adapter is not blocked


async def test_an_engine_that_does_not_list_a_loaded_adapter_has_failed() -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].replies = [LoraReply("done", 200, "loaded")]
        await scene.manager.load(STYLE)
        assert scene.states() == {"e0": "failed"}
        assert scene.served() == []


# ---- unload


async def loaded(scene: LoraScene) -> None:
    await scene.manager.load(STYLE)
    for dialect in scene.dialects:
        dialect.commands.clear()


async def test_an_adapter_is_unloaded_on_every_backend() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        await loaded(scene)
        change = await scene.manager.unload("style")
        assert [reply.text for reply in change.replies.values()] == ["unloaded style"] * 2
        assert (scene.states(), scene.served(), scene.manager.table.declared) == ({}, [], {})


async def test_if_one_refuses_the_others_load_it_again() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        await loaded(scene)
        scene.dialects[1].replies = [REFUSED]
        with pytest.raises(ApplianceError, match="e1 refused the adapter 'style'"):
            await scene.manager.unload("style")
        assert scene.commands() == [["unload style", "load style"], ["unload style", "load style"]]
        assert scene.states() == {"e0": "loaded", "e1": "loaded"}


async def test_partial_unload_leaves_the_rest_for_later() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        await loaded(scene)
        scene.dialects[1].replies = [REFUSED]
        change = await scene.manager.unload("style", is_partial=True)
        assert (list(change.replies), list(change.errors)) == (["e0"], ["e1"])
        assert [(one.backend, one.state) for one in change.row.backends] == [("e1", "unloading")]
        assert scene.served() == []


async def test_a_backend_that_is_down_unloads_it_when_it_is_up() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        await loaded(scene)
        scene.manager.start()
        scene.go_down(1)
        await scene.manager.unload("style")
        assert scene.states() == {"e1": "unloading"}
        scene.come_up(1, keeps_adapters=True)
        assert await scene.settles({})
        assert scene.dialects[1].adapters == {}


async def test_an_adapter_that_only_an_engine_has_is_unloaded_there() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[1].adapters["own"] = "/elsewhere/own"
        scene.come_up(1, keeps_adapters=True)
        change = await scene.manager.unload("own")
        assert list(change.replies) == ["e1"]
        assert scene.commands() == [[], ["unload own"]]


@pytest.mark.parametrize(
    ("replies", "error", "text"),
    [
        ([None], NotFound, r"e0 refused the adapter 'unknown' \(HTTP 404\): no adapter unknown"),
        ([REFUSED], ApplianceError, r"e0 refused the adapter 'unknown' \(HTTP 500\)"),
        (
            [OFF],
            Conflict,
            "e0 was started without loading adapters at run time. Start it with --enable-lora.",
        ),
    ],
)
async def test_an_unknown_adapter_gets_the_engines_reply(replies, error, text) -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].replies = replies
        with pytest.raises(error, match=text):
            await scene.manager.unload("unknown")


async def test_without_backends_there_is_no_such_adapter() -> None:
    async with lora_scene() as scene:
        with pytest.raises(NotFound, match="There is no adapter 'unknown'") as raised:
            await scene.manager.unload("unknown")
        assert raised.value.code == "no_such_adapter"


async def test_an_engine_that_cannot_unload_only_stops_serving_it() -> None:
    """llama-server keeps what it was started with."""
    async with lora_scene("tiny") as scene:
        await loaded(scene)
        scene.dialects[0].replies = [OFF]
        change = await scene.manager.unload("style")
        assert change.replies["e0"].text == "The adapter 'style' is no longer declared. Not Found"
        assert scene.manager.table.declared == {}


# ---- failures of an engine


@pytest.mark.parametrize(
    ("failure", "error", "text"),
    [
        (Unreachable("e0: connection refused", phase="connect"), Unreachable, "e0: connection refused"),
        (ValueError("no JSON"), UpstreamFailed, "The command to the backend e0 failed: no JSON"),
        (Invalid("no such file"), Invalid, "no such file"),
    ],
)
async def test_a_command_without_a_reply_is_an_error(failure, error, text) -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].replies = [failure]
        with pytest.raises(error, match=text):
            await scene.manager.load(STYLE)


async def test_a_list_that_cannot_be_read_again_is_out_of_date() -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].lists_adapters = False
        scene.dialects[0].can_read = False
        await scene.manager.load(STYLE)
        assert not scene.servers[0].models.is_current
        assert scene.servers[0].state.probe_due.is_set()


async def test_an_engine_without_lora_is_no_host() -> None:
    async with lora_scene("tiny") as scene:
        scene.servers[0].state.dialect = None
        host = scene.manager.hosts.by_name()["e0"]
        assert not host.view().can_load
        with pytest.raises(
            Conflict, match=r"The backend e0 \(auto\) cannot load adapters at run time"
        ) as raised:
            await host.load(STYLE, is_verified=True)
        assert raised.value.code == "lora_not_enabled"


async def test_declared_adapters_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "lora-adapters.json"
    async with lora_scene("tiny", path=path) as scene:
        await scene.manager.load(STYLE)
    async with lora_scene("tiny", path=path) as scene:
        assert scene.states() == {"e0": "pending"}
        await scene.manager.unload("style")
    async with lora_scene("tiny", path=path) as scene:
        assert scene.manager.table.declared == {}
