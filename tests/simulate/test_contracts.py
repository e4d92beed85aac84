"""The contracts say of every address of a stand-in what it rests on, and name no other."""

import re
import tomllib
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.simulate.faults import KINDS
from appliance.simulate.twin import ANY_PORTS, SERVICES, Twin, TwinOptions

BASES = {"captured", "documented", "assumed", "ours"}
PAGE = Path(__file__).parents[2] / "docs" / "simulate.md"
FOLDER = files("appliance.simulate") / "contracts"


def contract(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def addresses(written: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, method, path) of each route at each base."""
    found = []
    for route, base in product(written["route"], written["bases"]):
        if route.get("absolute"):
            base = ""
        if route.get("only", base) == base:
            found.append((route["name"], route["method"], base + route["path"]))
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_contract_and_stand_in_have_the_same_addresses(name: str) -> None:
    service = Twin(TwinOptions(ANY_PORTS), FakeClock()).services[name]
    written = contract(name)
    served = [(route.name, route.method, route.path) for route in service.routes()]
    assert sorted(addresses(written)) == sorted(served)
    assert tuple(written.get("calls", ())) == service.calls
    assert written["service"] == name


@pytest.mark.parametrize("name", SERVICES)
def test_every_promise_says_what_it_rests_on(name: str) -> None:
    written = contract(name)
    assert {row["basis"] for row in [*written["route"], *written["fact"]]} <= BASES
    assert all(len(fact["text"]) > 10 for fact in written["fact"])
    assert any(fact["basis"] == "assumed" for fact in written["fact"])


def test_there_is_a_contract_for_each_service_and_no_other() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{name}.toml" for name in SERVICES)


def test_the_page_has_every_kind_of_fault_with_its_services() -> None:
    rows = re.findall(r"^\| (`.+?) \| ([a-z, ]+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {kind: services for kinds, services in rows for kind in re.findall(r"`(\w+)`", kinds)}
    wanted = {
        name: "all" if set(kind.services) == set(SERVICES) else ", ".join(kind.services)
        for name, kind in KINDS.items()
    }
    assert {kind: told.get(kind) for kind in wanted} == wanted
