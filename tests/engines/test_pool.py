"""Backends that stand in for each other."""

import pytest

from appliance.base.errors import NotFound
from appliance.engines.pool import MAX_CACHED_MODELS, Pools
from tests.engines.scripted import TableBackend, pool_of


def test_a_pool_remembers_who_serves_a_model_until_it_is_refreshed() -> None:
    a, b = TableBackend("a"), TableBackend("b", models=["n"])
    pool = pool_of(a, b)
    assert (pool.serving("m"), pool.serving(None)) == ([a], [a, b])
    pool.backends.remove(a)
    assert pool.serving("m") == [a]
    pool.refresh()
    assert pool.serving("m") == []


def test_what_a_pool_remembers_is_bounded() -> None:
    pool = pool_of(TableBackend("any", serves_any=True))
    for number in range(MAX_CACHED_MODELS + 10):
        pool.serving(f"m{number}")
    assert len(pool._by_model) <= MAX_CACHED_MODELS


@pytest.mark.parametrize(
    ("overflows", "stages"),
    [
        ({}, ["p0"]),
        ({"p0": "p1"}, ["p0", "p1"]),
        ({"p0": "p1", "p1": "p2"}, ["p0", "p1", "p2"]),
        ({"p0": "p1", "p1": "p0"}, ["p0", "p1"]),  # a circle ends
        ({"p0": "nowhere"}, ["p0"]),
    ],
)
def test_stages_follow_the_overflows_in_order(overflows: dict[str, str], stages: list[str]) -> None:
    pools = Pools()
    pools.all = [pool_of(TableBackend(f"e{n}"), name=f"p{n}") for n in range(3)]
    for pool in pools.all:
        pool.overflow = overflows.get(pool.name, "")
    assert [pool.name for pool in pools.stages_from(pools.all[0])] == stages


def test_a_backend_is_found_by_name_and_its_pool_by_the_backend() -> None:
    pools = Pools()
    with pytest.raises(NotFound, match=r"There is no backend 'x'\. Known: none\."):
        pools.backend("x")
    pools.all = [pool_of(TableBackend("a"), name="p0"), pool_of(TableBackend("b"), name="p1")]
    assert [backend.name for backend in pools.backends()] == ["a", "b"]
    assert pools.pool_of(pools.backend("b")).name == "p1"
    with pytest.raises(NotFound, match=r"Known: a, b\."):
        pools.backend("x")
