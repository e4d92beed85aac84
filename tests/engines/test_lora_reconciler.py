"""The background loop: backends that come up, lose adapters, refuse, or disappear."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance.base.errors import Conflict
from appliance.engines.lora import reconciler
from appliance.engines.lora.plan import Adapter
from tests.engines.lora_scene import REFUSED, STYLE, lora_scene
from tests.journeys.running import until


async def test_a_backend_that_comes_up_gets_what_is_declared() -> None:
    async with lora_scene("tiny", "tiny", down=(1,)) as scene:
        scene.manager.start()
        await scene.manager.load(STYLE)
        assert scene.states() == {"e0": "loaded"}  # what e1 serves is not known yet
        scene.come_up(1)
        assert await scene.settles({"e0": "loaded", "e1": "loaded"})


async def test_a_restarted_backend_gets_it_again_and_serves_it_only_then() -> None:
    async with lora_scene("tiny") as scene:
        scene.manager.start()
        await scene.manager.load(STYLE)
        scene.go_down(0)
        assert scene.states() == {"e0": "down"}
        scene.come_up(0)
        assert scene.served() == []
        assert await scene.settles({"e0": "loaded"})
        assert scene.served() == ["e0"]
        assert scene.commands() == [["load style", "load style"]]


async def test_a_failure_is_retried_after_a_pause() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[1].replies = [REFUSED, REFUSED]
        await scene.manager.load(STYLE, is_partial=True)
        scene.manager.start()
        await scene.rounds()
        assert scene.commands()[1] == ["load style"]  # the pause is not over
        scene.clock.advance(1.0)
        scene.router.notify_changed()
        assert await until(lambda: scene.commands()[1] == ["load style"] * 2)
        scene.clock.advance(1.0)
        scene.router.notify_changed()
        await scene.rounds()
        assert scene.commands()[1] == ["load style"] * 2  # the second pause is longer
        scene.clock.advance(1.0)
        scene.router.notify_changed()
        assert await scene.settles({"e0": "loaded", "e1": "loaded"})
        assert scene.manager.table.failures == {}


async def test_a_step_whose_adapter_is_no_longer_declared_changes_nothing() -> None:
    async with lora_scene("tiny") as scene:
        scene.manager.table.declared["style"] = STYLE
        scene.manager.start()
        await scene.rounds(1)
        scene.manager.table.declared.clear()
        assert await until(lambda: scene.dialects[0].commands == ["load style"])
        await scene.rounds()
        assert "style" not in scene.servers[0].models.adapters.loaded


async def test_a_crash_of_a_step_is_a_failure_of_that_backend_only() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[0].replies = [ZeroDivisionError("bug")]
        scene.manager.table.declared["style"] = STYLE
        with capture_logs() as lines:
            scene.manager.start()
            assert await scene.settles({"e0": "failed", "e1": "loaded"})
        assert "adapter_step_crashed" in [line["event"] for line in lines]
        assert scene.manager.table.failures["style", "e0"].error == "internal error"


async def test_a_crash_of_the_loop_is_logged_and_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "CRASH_PAUSE_S", 0.01)
    async with lora_scene("tiny") as scene:
        guard, crashes = scene.manager.hosts.guard, [ZeroDivisionError("bug")]

        def crash_once(adapters: list[Adapter]) -> None:
            if crashes:
                raise crashes.pop()
            guard(adapters)

        monkeypatch.setattr(scene.manager.hosts, "guard", crash_once)
        scene.manager.table.declared["style"] = STYLE
        with capture_logs() as lines:
            scene.manager.start()
            assert await scene.settles({"e0": "loaded"})
        assert lines[0]["event"] == "adapter_reconcile_crashed"


async def test_a_file_that_cannot_be_written_is_logged(tmp_path: Path) -> None:
    async with lora_scene("tiny") as scene:
        leaving = Adapter("style", "/a", "tiny", is_wanted=False, unload_from=("e0",))
        scene.manager.table.declared["style"] = leaving

        async def fail() -> None:
            raise Conflict("The folder cannot be written.")

        scene.manager.table.save = fail  # type: ignore[method-assign]
        with capture_logs() as lines:
            scene.manager.start()
            assert await scene.settles({})
            await scene.rounds()
        assert ("adapters_not_saved", "The folder cannot be written.") in [
            (line["event"], line.get("reason")) for line in lines
        ]


async def test_a_backend_that_no_longer_serves_the_model_unloads_it() -> None:
    async with lora_scene("tiny") as scene:
        scene.manager.start()
        await scene.manager.load(STYLE)
        scene.dialects[0].base = "other"
        scene.come_up(0, keeps_adapters=True)
        assert await until(lambda: scene.commands() == [["load style", "unload style"]])
        await scene.rounds()
        assert (scene.served("other"), scene.states()) == (["e0"], {})
