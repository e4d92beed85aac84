"""Answers that are cut, retyped, shuffled or garbled never make an instance vanish, and raise nothing else."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.market.providers import ionet, vastai
from appliance.market.providers.calls import MarketReply, read_reply
from appliance.market.types import Instance, MarketRefused, MarketUnknown, OfferGone
from tests.market.test_ionet import row as ionet_row
from tests.market.test_vastai import row as vast_row

VAST_LIST = {
    "success": True,
    "instances": [vast_row(1), vast_row(2), vast_row(3)],
    "next_token": None,
    "total_instances": 3,
}
IONET_LIST = {"data": {"deployments": [ionet_row("dep-1"), ionet_row("dep-2")], "total": 2}}
VAST_SHOWN = {"instances": vast_row(7)}
IONET_SHOWN = {"data": ionet_row("dep-1")}
VALUES = st.one_of(
    st.none(), st.booleans(), st.text(max_size=8), st.floats(), st.just([]), st.just({}), st.just("")
)


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in _paths(item, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn, original: Any) -> MarketReply:
    """An answer with one to three changes: a value replaced or removed, bytes cut or changed, the status."""
    value: Any = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(value)))
        if not path:
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(VALUES)
    data = json.dumps(value).encode()
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    status = draw(st.sampled_from([200, 200, 200, 200, 201, 204, 301, 400, 401, 404, 410, 429, 500, 503]))
    return read_reply(status, data, draw(st.text(max_size=12)))


def list_vast(reply: MarketReply) -> list[Instance]:
    pages = vastai.ListedPages()
    pages.add(vastai.sound_object(reply))
    if pages.next_token:
        raise MarketUnknown("another page would be asked for")
    return pages.complete()


def list_ionet(reply: MarketReply) -> list[Instance]:
    pages = ionet.DeploymentPages()
    pages.add(ionet.sound_data(reply))
    if not pages.is_complete:
        raise MarketUnknown("another page would be asked for")
    return pages.live()


@settings(max_examples=400, deadline=None)
@given(mutated(VAST_LIST))
def test_a_garbled_list_of_vast_hides_no_instance(reply: MarketReply) -> None:
    try:
        found = list_vast(reply)
    except (MarketUnknown, MarketRefused):
        return
    if reply.value.get("total_instances") is not None:  # otherwise only the end mark speaks for it
        assert {one.contract_id for one in found} == {"1", "2", "3"} or len(found) == reply.value[
            "total_instances"
        ] != 3


@settings(max_examples=400, deadline=None)
@given(mutated(IONET_LIST))
def test_a_garbled_list_of_ionet_hides_no_instance(reply: MarketReply) -> None:
    try:
        found = list_ionet(reply)
    except (MarketUnknown, MarketRefused):
        return
    value = reply.value.get("data", reply.value)
    assert len(value["deployments"]) == value["total"]
    assert {one.contract_id for one in found} <= {row["id"] for row in value["deployments"]}


@settings(max_examples=400, deadline=None)
@given(mutated(VAST_SHOWN))
def test_a_garbled_vast_instance_is_gone_only_by_null(reply: MarketReply) -> None:
    try:
        found = vastai.read_shown(reply, 7)
    except (MarketUnknown, MarketRefused):
        return
    if found is None:
        assert 200 <= reply.status < 300
        assert reply.value["instances"] is None
    else:
        assert found.contract_id == "7"


@settings(max_examples=400, deadline=None)
@given(mutated(IONET_SHOWN))
def test_a_garbled_ionet_deployment_is_never_gone(reply: MarketReply) -> None:
    assert not ionet.is_clear_none(reply, "dep-1") or reply.status == 404
    try:
        assert ionet.read_instance(ionet.sound_data(reply), "dep-1").contract_id == "dep-1"
    except (MarketUnknown, MarketRefused):
        return


@pytest.mark.parametrize("read", [vastai.read_created, ionet.read_created])
@settings(max_examples=300, deadline=None)
@given(
    reply=mutated({"success": True, "new_contract": 991, "deployment_id": "dep-1", "error": "x", "msg": "y"})
)
def test_a_garbled_create_is_never_a_refusal_by_accident(
    read: Callable[[MarketReply], str], reply: MarketReply
) -> None:
    try:
        assert read(reply) in ("991", "dep-1")
    except (OfferGone, MarketRefused):
        assert 400 <= reply.status < 500 or isinstance(reply.value.get("error"), str)
    except MarketUnknown:
        pass


@settings(max_examples=300, deadline=None)
@given(
    mutated({"offers": [{"id": 1, "gpu_name": "L4", "num_gpus": 1, "gpu_ram": 24000, "dph_total": 0.4}] * 2})
)
def test_garbled_offers_have_prices_or_are_left_out(reply: MarketReply) -> None:
    try:
        offers = vastai.read_offers(vastai.sound_object(reply))
    except (MarketUnknown, MarketRefused):
        return
    assert all(offer.supply_musd_per_h > 0 and offer.gpu_count >= 1 and offer.vram_gb > 0 for offer in offers)


@given(st.binary(max_size=200), st.integers(100, 599), st.text(max_size=30))
def test_any_bytes_are_read_without_another_error(data: bytes, status: int, retry_after: str) -> None:
    reply = read_reply(status, data, retry_after)
    for read in (list_vast, list_ionet, vastai.read_created, ionet.read_created):
        with pytest.raises((MarketUnknown, MarketRefused, OfferGone)):
            read(reply)
