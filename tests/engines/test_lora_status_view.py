"""How adapters stand: the list, the metrics, and why one cannot be requested."""

import pytest

from appliance.base.errors import ApplianceError, Conflict, NoSuchModel, NotFound, Unavailable
from appliance.engines.dialects.contract import EngineHealth
from appliance.engines.lora.plan import Adapter
from tests.engines.lora_scene import REFUSED, STYLE, lora_scene

# ---- the base model of a new adapter


@pytest.mark.parametrize(
    ("wanted", "backend", "base"), [("tiny", "", "tiny"), ("", "e1", "other"), ("other", "e1", "other")]
)
async def test_the_base_model_is_found(wanted: str, backend: str, base: str) -> None:
    async with lora_scene("tiny", "other") as scene:
        assert scene.manager.status.find_base_model(wanted, backend) == base


@pytest.mark.parametrize(
    ("wanted", "backend", "error", "text", "code"),
    [
        ("", "e7", NotFound, "no backend 'e7' that can load adapters. Known: e0, e1", "no_such_backend"),
        ("nothing", "", NoSuchModel, "serves the model 'nothing'. Available: tiny, other", None),
        ("tiny", "e1", NoSuchModel, "serves the model 'tiny'. Available: other", None),
        ("", "", Conflict, "Set `base_model`: .* Available: tiny, other", "base_model_needed"),
    ],
)
async def test_a_base_model_that_is_not_clear_is_refused(wanted, backend, error, text, code) -> None:
    async with lora_scene("tiny", "other") as scene:
        with pytest.raises(error, match=text) as raised:
            scene.manager.status.find_base_model(wanted, backend)
        assert code is None or raised.value.code == code


async def test_before_any_backend_responded_the_caller_may_retry() -> None:
    async with lora_scene("tiny", down=(0,)) as scene:
        with pytest.raises(Unavailable, match="No backend that can load adapters has responded") as raised:
            scene.manager.status.find_base_model("", "")
        assert raised.value.retry_after_s == 2


# ---- why an adapter cannot be requested


async def test_names_that_are_not_declared_are_not_explained() -> None:
    async with lora_scene("tiny") as scene:
        leaving = Adapter("old", "/a", "tiny", is_wanted=False, unload_from=("e0",))
        scene.manager.table.declared["old"] = leaving
        assert scene.manager.status.find_absent("unknown") is None
        assert scene.manager.status.find_absent("old") is None


@pytest.mark.parametrize(
    ("state", "text", "is_expected"),
    [
        ("pending", "e0 is pending", True),
        ("failed", r"e0 is failed \(.*out of adapter slots\)", False),
        ("down", "e0 is down", False),
        ("no model", "no backend serves its base model 'tiny'", False),
    ],
)
async def test_the_reason_tells_whether_to_wait(state: str, text: str, is_expected: bool) -> None:
    async with lora_scene("tiny" if state != "no model" else "other") as scene:
        scene.manager.table.declared["style"] = STYLE
        if state == "failed":
            error = ApplianceError("out of adapter slots")
            scene.manager.table.add_failure("style", "e0", error)
        elif state == "down":
            scene.servers[0].state.update_health(EngineHealth(False, detail="connection refused"))
        absent = scene.manager.status.find_absent("style")
        assert absent is not None
        assert absent.message.startswith("The adapter 'style' is declared, but no backend has it")
        assert absent.is_expected is is_expected
        with pytest.raises(ApplianceError, match=text):
            raise absent


async def test_an_adapter_is_expected_while_a_backend_starts() -> None:
    """What that backend serves is not known yet."""
    async with lora_scene("tiny", down=(0,)) as scene:
        scene.manager.table.declared["style"] = STYLE
        absent = scene.manager.status.find_absent("style")
        assert absent is not None
        assert absent.is_expected
        assert "no backend serves its base model 'tiny'" in absent.message


# ---- the list


async def test_declared_adapters_are_listed_before_those_of_engines() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        for number, dialect in enumerate(scene.dialects):
            dialect.adapters["own"] = f"/elsewhere/{number}"
            scene.come_up(number, keeps_adapters=True)
        await scene.manager.load(STYLE)
        scene.go_down(1)
        declared, own = scene.manager.status.rows()
        assert (declared.adapter, declared.is_declared) == (STYLE, True)
        assert (own.adapter.name, own.adapter.path, own.adapter.base_model) == ("own", "/elsewhere/0", "tiny")
        assert own.is_declared is False
        assert [(one.backend, one.kind, one.state) for one in own.backends] == [
            ("e0", "vllm", "loaded"),
            ("e1", "vllm", "down"),
        ]


async def test_the_gauge_has_one_row_for_each_state() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        scene.dialects[1].replies = [REFUSED]
        await scene.manager.load(STYLE, is_partial=True)
        for _ in range(2):
            scene.manager.status.measure()
        samples = {
            tuple(sample.labels.values()): sample.value
            for family in scene.metrics.lora_loaded.collect()
            for sample in family.samples
        }
        assert samples == {("style", "e0", "loaded"): 1.0, ("style", "e1", "failed"): 1.0}


async def test_what_an_unload_without_backends_comes_to_has_no_state() -> None:
    async with lora_scene("tiny") as scene:
        change = scene.manager.describe_unloaded(STYLE)
        assert (change.row.backends, change.replies, change.errors) == ((), {}, {})
