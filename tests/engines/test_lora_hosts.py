"""The backends that can have adapters: servers, and the models that the appliance runs itself."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.base.errors import Invalid
from appliance.engines.backends.adapters import AdapterState
from appliance.engines.backends.managed import ManagedBackend
from appliance.engines.dialects.contract import EngineHealth, LoraReply
from appliance.engines.lora import managed_host
from appliance.engines.lora.hosts import AdapterHosts
from appliance.engines.lora.managed_host import ManagedHost, check_adapter_file, prepare_models
from appliance.engines.lora.plan import Adapter
from appliance.engines.pool import Pool
from appliance.models.table.catalogue import LoraAdapter
from tests.engines.lora_scene import STYLE, lora_scene
from tests.engines.servers import server_at

# ---- servers


async def test_a_host_lives_as_long_as_its_backend() -> None:
    async with lora_scene("tiny", "tiny") as scene:
        hosts = scene.manager.hosts
        first = hosts.by_name()
        assert hosts.by_name() == first
        pool = Pool("default", strategy="round_robin")
        replacement = server_at(spec={"name": "e0"})
        pool.backends = [replacement, scene.servers[1]]
        scene.router.set_pools([pool])
        second = hosts.by_name()
        assert second["e0"] is not first["e0"]
        assert second["e1"] is first["e1"]
        assert (hosts.is_current(first["e0"]), hosts.is_current(second["e0"])) == (False, True)


async def test_waiting_for_a_target_ends_when_one_is_up() -> None:
    async with lora_scene("tiny", "other", down=(0,)) as scene:
        hosts = scene.manager.hosts
        assert not hosts.has_target(STYLE)
        waiting = asyncio.ensure_future(hosts.wait_target(STYLE))
        await scene.rounds()
        assert not waiting.done()
        scene.come_up(0)
        await asyncio.wait_for(waiting, 5)
        assert hosts.has_target(STYLE)
        assert [host.name for host in hosts.targets(STYLE)] == ["e0"]


async def test_guarded_names_are_not_served_by_backends_without_the_adapter() -> None:
    async with lora_scene("tiny") as scene:
        scene.dialects[0].adapters["style"] = "/elsewhere/style"
        scene.come_up(0, keeps_adapters=True)
        assert scene.served() == ["e0"]
        version = scene.router.changed.version
        scene.manager.hosts.publish([STYLE])
        assert scene.served() == []
        assert scene.router.changed.version > version


@pytest.mark.parametrize(
    ("health", "grace_s", "is_up", "is_expected"),
    [
        (EngineHealth(True), 0.0, True, True),
        (EngineHealth(False, is_loading=True), 0.0, False, True),
        (EngineHealth(False), 60.0, False, True),  # in its startup grace
        (EngineHealth(False), 0.0, False, False),
    ],
)
async def test_a_server_is_expected_while_it_starts(health, grace_s, is_up, is_expected) -> None:
    async with lora_scene("tiny") as scene:
        state = scene.servers[0].state
        state.settings = state.settings.model_copy(update={"backend_startup_grace_s": grace_s})
        state.is_lost = False
        state.health = health
        host = scene.manager.hosts.by_name()["e0"]
        assert (host.view().is_up, host.is_expected()) == (is_up, is_expected)


async def test_running_requests_end_before_an_adapter_is_unloaded() -> None:
    async with lora_scene("tiny") as scene:
        await scene.manager.load(STYLE)
        adapters = scene.servers[0].models.adapters
        slot = scene.servers[0].take("only_one")
        adapters.acquire("style", slot)
        unloading = asyncio.ensure_future(scene.manager.unload("style"))
        await scene.rounds()
        assert scene.served() == []  # no new request gets it
        assert scene.commands() == [["load style"]]
        adapters.release(slot)
        await unloading
        assert scene.commands() == [["load style", "unload style"]]


# ---- models of the model manager


@dataclass
class ScriptedManager:
    """The model manager's adapters by alias; `fails`: raised by a load."""

    model_states: dict[str, Any]
    adapters: dict[str, tuple[LoraAdapter, ...]] = field(default_factory=dict)
    fails: Exception | None = None
    loads: list[str] = field(default_factory=list)

    def model_state(self, alias: str) -> Any:
        return self.model_states[alias]

    def set_adapters(self, alias: str, adapters: tuple[LoraAdapter, ...]) -> None:
        self.adapters[alias] = adapters

    async def load(self, alias: str) -> None:
        self.loads.append(alias)
        if self.fails is not None:
            raise self.fails


def header(kind: str = "adapter", architecture: str = "llama") -> SimpleNamespace:
    return SimpleNamespace(kind=kind, architecture=architecture)


@pytest.fixture
def manager() -> ScriptedManager:
    return ScriptedManager(
        {
            "tiny": SimpleNamespace(
                header=header("model"), path=Path("/m.gguf"), definition=SimpleNamespace(engine=None)
            )
        }
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter's file whose header fits the model `tiny`."""
    monkeypatch.setattr(managed_host, "read_header", lambda _: header())
    path = tmp_path / "style.gguf"
    path.write_bytes(b"GGUF")
    return path


def host_of(manager: ScriptedManager) -> tuple[ManagedHost, list[str]]:
    refreshed: list[str] = []
    managed: Any = SimpleNamespace(
        name="models",
        manager=manager,
        find_model=lambda _: None,
        adapters=AdapterState("models"),
        callbacks=SimpleNamespace(on_models=lambda: refreshed.append("models")),
    )
    return ManagedHost(managed), refreshed


async def test_a_model_is_restarted_with_and_without_an_adapter(manager, file: Path) -> None:
    host, refreshed = host_of(manager)
    style = Adapter("style", str(file), "tiny")
    assert await host.load(style, is_verified=True) == LoraReply(
        "done", 200, "The model 'tiny' runs with the adapter 'style'."
    )
    assert (manager.adapters, manager.loads) == ({"tiny": (LoraAdapter(file, 0.0, "style"),)}, ["tiny"])
    assert host.view().bases == {"tiny"}
    assert host.is_expected()
    assert (await host.unload(style, {})).text == "The model 'tiny' runs without the adapter 'style'."
    assert (manager.adapters, refreshed) == ({"tiny": ()}, ["models"])
    assert await host.unload(style, {}) == LoraReply("unknown", 404, "No model here has an adapter 'style'.")


async def test_a_model_that_fails_with_an_adapter_is_put_back(manager, file: Path) -> None:
    manager.fails = Invalid("The model did not start.")
    with pytest.raises(Invalid, match="did not start"):
        await host_of(manager)[0].load(Adapter("style", str(file), "tiny"), is_verified=True)
    assert manager.adapters == {"tiny": ()}


async def test_an_unverified_load_waits_for_the_next_start(manager, file: Path) -> None:
    await host_of(manager)[0].load(Adapter("style", str(file), "tiny"), is_verified=False)
    assert (list(manager.adapters), manager.loads) == (["tiny"], [])


def test_an_adapter_of_a_model_is_requested_by_its_place_in_the_list(manager, file: Path) -> None:
    loras = [SimpleNamespace(name="", scale=0.5), LoraAdapter(file, 0.0, "style")]
    manager.model_states["tiny"].definition = SimpleNamespace(lora=loras, engine=None)
    host, _ = host_of(manager)
    loaded = host.describe_loaded(Adapter("style", str(file), "tiny"), LoraReply("done", 200, ""))
    assert (loaded.engine_name, loaded.is_listed) == ("style", True)
    assert (loaded.served.card.id, loaded.served.card.parent) == ("style", "tiny")
    assert dict(loaded.served.extra) == {"lora": [{"id": 0, "scale": 0.5}, {"id": 1, "scale": 1.0}]}


async def test_the_model_managers_backend_is_a_host() -> None:
    class Backend(ManagedBackend):
        def __init__(self) -> None:
            self.adapters = AdapterState("models")

    backend = Backend()
    router: Any = SimpleNamespace(backends=lambda: [backend])
    hosts = AdapterHosts(router)
    first = hosts.by_name()["models"]
    assert isinstance(first, ManagedHost)
    assert hosts.by_name()["models"] is first


def test_models_are_prepared_with_the_adapters_that_can_be_used(manager, file: Path) -> None:
    adapters = [
        Adapter("style", str(file), "tiny"),
        Adapter("missing", str(file.parent / "missing.gguf"), "tiny"),
        Adapter("elsewhere", str(file), "tiny", backend="e0"),
        Adapter("leaving", str(file), "tiny", is_wanted=False),
        Adapter("other", str(file), "other"),
    ]
    prepare_models(manager, adapters)
    assert manager.adapters == {"tiny": (LoraAdapter(file, 0.0, "style"),)}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (header("model"), "is a GGUF file of kind 'model' and architecture 'llama'"),
        (header(architecture="qwen"), "the model 'tiny' needs an adapter of architecture 'llama'"),
        (OSError("permission denied"), "Cannot read the adapter .*: permission denied"),
    ],
)
def test_a_file_of_another_kind_is_refused(manager, file: Path, monkeypatch, found, text) -> None:
    def read(path: Path) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(managed_host, "read_header", read)
    with pytest.raises(Invalid, match=text) as raised:
        check_adapter_file(manager, Adapter("style", str(file), "tiny"))
    assert (raised.value.param, raised.value.code) == ("lora_path", "adapter_unusable")


def test_files_of_other_formats_are_left_to_llama_server(manager, tmp_path: Path) -> None:
    path = tmp_path / "style.bin"
    path.write_bytes(b"x")
    assert check_adapter_file(manager, Adapter("style", str(path), "tiny")) == path
