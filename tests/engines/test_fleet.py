"""Which backends there are: what a reload changes, what an operator changes, and what survives a restart.

Nothing is probed here: the tasks of the fleet are kept still.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Conflict, Invalid, NotFound
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.engines import fleet as module
from appliance.engines.fleet import Fleet
from appliance.engines.outcome import Outcome
from appliance.engines.router import Router
from appliance.engines.runtime_changes import RuntimeChanges
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import BackendSpec, FleetSpec, PoolSpec
from appliance.engines.types import ModelCard
from tests.fakes.backend import FakeBackend

KEY = "sk_of_the_hosted_api"


class StillTasks(Tasks):
    """Tasks that do not run: each is kept until it is asked for, or closed."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Coroutine[Any, Any, Any]] = {}

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> "asyncio.Task[Any]":
        if name in self.kept:
            self.kept[name].close()
        self.kept[name] = work
        return asyncio.get_running_loop().create_future()  # type: ignore[return-value]

    async def close(self) -> None:
        for work in self.kept.values():
            work.close()


def spec(*names: str, pool: str = "default", pools: tuple[PoolSpec, ...] = (), **more: Any) -> FleetSpec:
    backends = [BackendSpec(url=f"http://{name}:1", name=name, pool=pool, **more) for name in names]
    return FleetSpec(backends=tuple(backends), pools=pools)


class FakeManaged(FakeBackend):
    """The models that run here: one, until `models` is cleared."""

    pool = "models"

    def __init__(self, taken: list[EngineSettings]) -> None:
        super().__init__("models", FakeClock(), kind="managed")
        self.models, self.taken = [ModelCard("tiny", 0, "user", "tiny")], taken

    def cards(self) -> list[ModelCard]:
        return self.models

    def apply(self, settings: EngineSettings) -> None:
        self.taken.append(settings)


class Scene:
    """A fleet with its router."""

    def __init__(self, path: Path | None) -> None:
        self.tasks, self.metrics = StillTasks(), Metrics()
        self.router = Router(EngineSettings(), clock=FakeClock(), metrics=self.metrics)
        self.fleet = Fleet(
            self.router, tasks=self.tasks, clock=FakeClock(), metrics=self.metrics, changes_path=path
        )

    def apply(self, spec: FleetSpec, **settings: Any) -> list[str]:
        return self.fleet.apply(EngineSettings(**settings), spec, {"KEY_OF_X": "k"})

    def pools(self) -> dict[str, list[str]]:
        return {pool.name: [backend.name for backend in pool.backends] for pool in self.router.pools}

    def standing(self, name: str) -> str:
        return self.router.state(name).standing


@pytest.fixture
async def scenes(tmp_path: Path) -> Any:
    """Open fleets over one state folder, one after the other; `keeps=False`: without a folder."""
    opened: list[Scene] = []

    def make(*, keeps: bool = True) -> Scene:
        opened.append(Scene(tmp_path / "backends.json" if keeps else None))
        return opened[-1]

    yield make
    for scene in opened:
        await scene.fleet.close()
        await scene.tasks.close()


Scenes = Callable[..., Scene]


# ---- apply


@pytest.mark.parametrize(
    ("before", "after", "differences"),
    [
        (spec(), spec("a", "b"), ["the backend a is added", "the backend b is added"]),
        (spec("a", "b"), spec("a"), ["the backend b is removed"]),
        (spec("a"), spec("a", cost=2.0), ["the backend a is changed"]),
        (spec("a"), spec("b"), ["the backend a is removed", "the backend b is added"]),
        (spec("a"), spec("a"), []),
    ],
)
async def test_apply_says_what_differs(
    scenes: Scenes, before: FleetSpec, after: FleetSpec, differences: list[str]
) -> None:
    scene = scenes()
    scene.apply(before)
    assert scene.fleet.describe_changes(after) == differences
    assert scene.apply(after) == differences


async def test_describe_changes_names_pools_too(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec("a", pools=(PoolSpec(name="default"), PoolSpec(name="old"))))
    after = spec("a", pools=(PoolSpec(name="default", strategy="round_robin"),))
    assert scene.fleet.describe_changes(after) == ["the pool default is changed", "the pool old is removed"]


async def test_a_server_that_stays_keeps_what_is_known_of_it(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec("a", "b"))
    kept, changed = scene.fleet.servers()
    scene.apply(
        spec("a", "b", cost=1.0).model_copy(update={"backends": (kept.spec, spec("b", cost=1.0).backends[0])})
    )
    assert scene.fleet.servers()[0] is kept
    assert scene.fleet.servers()[1] is not changed
    scene.apply(spec("a"), breaker_failures=7)
    assert kept.state.breaker.max_failures == 7


@pytest.mark.parametrize(
    ("before", "settings", "pools"),
    [
        (spec(), {}, {"demo": ["demo"]}),
        (spec("a", "b"), {}, {"default": ["a", "b"]}),
        (spec(), {"novita_api_key": KEY}, {"hosted": ["hosted"]}),
        (spec("a"), {"novita_api_key": KEY}, {"default": ["a"], "hosted": ["hosted"]}),
        (spec("a", pool="hosted"), {"novita_api_key": KEY}, {"hosted": ["hosted", "a"]}),
        (spec("a", pool="fast", pools=(PoolSpec(name="fast"),)), {}, {"fast": ["a"]}),
    ],
)
async def test_pools_hold_servers_then_the_hosted_api_then_the_demo(
    scenes: Scenes, before: FleetSpec, settings: dict[str, Any], pools: dict[str, list[str]]
) -> None:
    scene = scenes()
    scene.apply(before, **settings)
    assert scene.pools() == pools


async def test_the_demo_engine_stays_while_its_names_stay(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec())
    demo = scene.router.backends()[0]
    scene.apply(spec(), queue_limit=1)
    assert scene.router.backends()[0] is demo
    scene.apply(spec(), public_model="other")
    assert [card.id for card in scene.router.cards()] == ["other"]


async def test_a_replaced_hosted_api_closes_when_it_is_idle(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_POLL_S", 0.0)
    scene = scenes()
    scene.apply(spec(), novita_api_key=KEY)
    former = scene.router.backends()[0]
    slot, closed = former.take("only_one"), list[bool]()

    async def close() -> None:
        closed.append(True)

    monkeypatch.setattr(former, "close", close)
    scene.apply(spec())
    closing = asyncio.create_task(scene.tasks.kept.pop("close-old-backend"))
    await asyncio.sleep(0)
    assert not closed
    slot.release(Outcome.OK)
    await closing
    assert closed == [True]


@pytest.mark.parametrize(
    ("pool", "setting", "strategy"),
    [
        (PoolSpec(name="default", strategy="round_robin"), "least_busy", "round_robin"),
        (PoolSpec(name="default"), "power_of_two", "power_of_two"),
        (PoolSpec(name="default"), "best_of_all", "round_robin"),  # unknown
    ],
)
async def test_a_pools_strategy(scenes: Scenes, pool: PoolSpec, setting: str, strategy: str) -> None:
    scene = scenes()
    scene.apply(spec("a", pools=(pool,)), lb_strategy=setting)
    assert scene.router.strategy == strategy


# ---- at run time


async def test_a_backend_is_added_and_lost_at_a_restart(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    assert scene.fleet.add({"url": "http://x:1", "name": "x"}).origin == "runtime"
    assert scene.apply(spec("a")) == []  # a reload keeps it
    assert scene.pools() == {"default": ["a", "x"]}
    again = scenes()
    again.apply(spec("a"))
    assert again.pools() == {"default": ["a"]}


async def test_a_persisted_backend_survives_a_restart(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    fields = {"url": "http://x:1", "name": "x", "api_key_env": "KEY_OF_X", "models": [], "pool": ""}
    scene.fleet.add(fields, persist=True, environ={"KEY_OF_X": "k"})
    again = scenes()
    again.apply(spec("a"))
    assert (again.router.state("x").origin, again.fleet.servers()[1].headers) == (
        "persisted",
        {"Authorization": "Bearer k"},
    )


async def test_a_persisted_backend_that_cannot_be_used_is_left_out(scenes: Scenes, tmp_path: Path) -> None:
    changes = RuntimeChanges(added={"x": {"url": "ftp://x"}, "y": {"url": "http://y", "name": "y"}})
    changes.write(tmp_path / "backends.json")
    scene = scenes()
    scene.apply(spec("a"))
    assert scene.pools() == {"default": ["a", "y"]}


@pytest.mark.parametrize("name", ["a", "hosted", "demo"])
async def test_a_name_is_given_once(scenes: Scenes, name: str) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    with pytest.raises(Conflict, match=f"There is a backend '{name}' already"):
        scene.fleet.add({"url": "http://x", "name": name})


async def test_a_backend_with_a_wrong_field_is_refused(scenes: Scenes) -> None:
    with pytest.raises(Invalid, match="not an http"):
        scenes().fleet.add({"url": "ftp://x"})


@pytest.mark.parametrize(("persist", "after_restart"), [(False, ["a", "b"]), (True, ["b"])])
async def test_a_removed_backend(scenes: Scenes, persist: bool, after_restart: list[str]) -> None:
    scene = scenes()
    scene.apply(spec("a", "b"))
    scene.fleet.remove("a", persist=persist)
    assert scene.pools() == {"default": ["b"]}
    assert scene.apply(spec("a", "b")) == []  # a reload does not bring it back
    again = scenes()
    again.apply(spec("a", "b"))
    assert again.pools() == {"default": after_restart}


async def test_a_persisted_backend_that_is_removed_is_forgotten(scenes: Scenes, tmp_path: Path) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    scene.fleet.add({"url": "http://x:1", "name": "x"}, persist=True)
    scene.fleet.remove("x")
    assert json.loads((tmp_path / "backends.json").read_bytes())["added"] == {}
    scene.fleet.add({"url": "http://a:1", "name": "x"}, persist=True)
    assert scene.pools() == {"default": ["a", "x"]}


async def test_a_removed_backends_metrics_go_when_it_is_idle(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_POLL_S", 0.0)
    scene, removed = scenes(), []
    scene.apply(spec("a", "b"))
    server = scene.fleet.servers()[0]
    monkeypatch.setattr(server.stats, "remove_metrics", lambda: removed.append("a"))
    slot = server.take("only_one")
    scene.fleet.remove("a")
    waiting = asyncio.create_task(scene.tasks.kept.pop("close-a"))
    await asyncio.sleep(0)
    assert removed == []
    slot.release(Outcome.OK)
    await waiting
    assert removed == ["a"]


@pytest.mark.parametrize(("persist", "after_restart"), [(False, "starting"), (True, "draining")])
async def test_a_drained_backend(scenes: Scenes, persist: bool, after_restart: str) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    scene.fleet.drain("a", persist=persist)
    scene.apply(spec("a"))
    assert scene.standing("a") == "draining"
    again = scenes()
    again.apply(spec("a"))
    assert again.standing("a") == after_restart
    again.fleet.drain("a", resume=True)
    assert again.standing("a") == "starting"
    last = scenes()
    last.apply(spec("a"))
    assert last.standing("a") == "starting"


@pytest.mark.parametrize("change", ["remove", "drain"])
async def test_only_servers_can_be_changed(scenes: Scenes, change: str) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    with pytest.raises(NotFound, match=r"no backend 'x' that can be changed\. Known: a"):
        getattr(scene.fleet, change)("x")


async def test_a_strategy_lasts_until_the_settings_name_another(scenes: Scenes) -> None:
    scene = scenes()
    scene.apply(spec("a"), lb_strategy="least_busy")
    scene.fleet.set_strategy("round_robin")
    scene.apply(spec("a"), lb_strategy="least_busy")
    assert scene.router.strategy == "round_robin"
    scene.apply(spec("a"), lb_strategy="power_of_two")
    assert scene.router.strategy == "power_of_two"


@pytest.mark.parametrize("pool", ["", "default"])
async def test_a_persisted_strategy_survives_a_restart(scenes: Scenes, pool: str) -> None:
    scene = scenes()
    scene.apply(spec("a"))
    scene.fleet.set_strategy("round_robin", pool=pool, persist=True)
    again = scenes()
    again.apply(spec("a"))
    assert again.router.strategy == "round_robin"


async def test_a_change_without_a_state_folder_is_not_kept(scenes: Scenes) -> None:
    scene = scenes(keeps=False)
    scene.apply(spec("a"))
    with pytest.raises(Conflict, match="no state folder"):
        scene.fleet.remove("a", persist=True)
    assert scene.pools() == {"demo": ["demo"]}


async def test_first_probes_that_hang_are_not_waited_for_long(
    scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PROBES_TIMEOUT_S", 0.01)
    scene = scenes()
    await scene.fleet.wait_first_probes()
    scene.apply(spec("a"))
    await asyncio.wait_for(scene.fleet.wait_first_probes(), 5)


async def test_managed_models_are_looked_for_first(scenes: Scenes) -> None:
    scene, taken = scenes(), list[EngineSettings]()
    scene.apply(spec("a"))
    managed = FakeManaged(taken)
    scene.fleet.set_managed(managed)  # type: ignore[arg-type]
    assert scene.pools() == {"models": ["models"], "default": ["a"]}
    managed.models.clear()
    scene.fleet.refresh_managed(EngineSettings(queue_limit=1))
    assert (scene.pools(), [settings.queue_limit for settings in taken]) == ({"default": ["a"]}, [1])


async def test_connections_of_all_pools_are_measured(scenes: Scenes) -> None:
    scene = scenes()
    scene.fleet.measure()
    (family,) = scene.metrics.upstream_connections.collect()
    assert family.samples == []
    scene.apply(spec("a"), novita_api_key=KEY)
    scene.fleet.measure()
    (family,) = scene.metrics.upstream_connections.collect()
    assert {sample.labels["state"]: sample.value for sample in family.samples} == {
        "idle": 0,
        "in_use": 0,
        "waiting": 0,
    }


# ---- the file


@pytest.mark.parametrize("content", ["{", "[]", '{"added": {}}', '{"added": 1, "removed": 1}'])
def test_changes_that_cannot_be_read_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "backends.json"
    path.write_text(content)
    assert RuntimeChanges.read(path) == RuntimeChanges()
    assert path.read_text() == content  # for the operator to look at


def test_changes_are_read_as_they_were_written(tmp_path: Path) -> None:
    changes = RuntimeChanges({"x": {"url": "http://x"}}, ["a"], ["b"], {"": "round_robin"})
    changes.write(tmp_path / "backends.json")
    assert RuntimeChanges.read(tmp_path / "backends.json") == changes
    assert (tmp_path / "backends.json").stat().st_mode & 0o077 == 0  # keys may be in it


def test_an_added_backend_is_removed_no_longer() -> None:
    changes = RuntimeChanges(removed=["x"])
    changes.add("x", {"url": "http://x", "models": [], "weight": None})
    assert (changes.removed, changes.added) == ([], {"x": {"url": "http://x", "name": "x"}})


def test_a_strategy_of_all_pools_replaces_those_of_single_ones() -> None:
    changes = RuntimeChanges(strategies={"a": "round_robin"})
    changes.set_strategy("least_busy", "")
    assert changes.strategies == {"": "least_busy"}
