"""The table of the HTTP API: the addresses of each group, and the page that lists them."""

import re

import pytest

from appliance.__main__ import main
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.routes import join_routes
from appliance.front.routes_text import SIDECAR, as_page, as_text, main_sections, without_parts
from appliance.front.sidecar import sidecar_routes

MAIN = [route for _, routes in main_sections() for route in routes]


async def handler(request: Request) -> Response:
    """Say hello.

    Not shown.
    """
    return Response()


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/healthz", "/healthz", True),
        ("/healthz", "/healthz/", False),
        ("/healthz", "/health", False),
        ("/receipts/{id}", "/receipts/req_1", True),
        ("/receipts/{id}", "/receipts/", False),
        ("/receipts/{id}", "/receipts/a/b", False),
        ("/v1/models/{model:.+}", "/v1/models/owner/name", True),
        ("/v1/models/{model:.+}", "/v1/models/", False),
        ("/v1/models/{alias:.+}/{verb:load|pin}", "/v1/models/a/b/pin", True),
        ("/v1/models/{alias:.+}/{verb:load|pin}", "/v1/models/a/drop", False),
        ("/a.b", "/a-b", False),
    ],
)
def test_a_path_fits_its_pattern(pattern: str, path: str, fits: bool) -> None:
    assert Route(("GET",), pattern, handler).fits(path) is fits


def test_the_summary_is_the_handlers_first_line() -> None:
    assert Route(("GET",), "/", handler).summary == "Say hello."


def test_a_group_that_is_switched_off_has_no_addresses() -> None:
    class One:
        def routes(self) -> list[Route]:
            return [Route(("GET",), "/one", handler)]

    assert [route.path for route in join_routes(None, One(), None)] == ["/one"]


@pytest.mark.parametrize("table", [MAIN, sidecar_routes(*without_parts(SIDECAR))], ids=["main", "sidecar"])
def test_no_address_is_listed_twice(table: list[Route]) -> None:
    addresses = [(method, route.path) for route in table for method in route.methods]
    assert len(addresses) == len(set(addresses))


def test_every_address_has_a_summary() -> None:
    assert [route.path for route in MAIN if not route.summary] == []


def test_few_addresses_are_public() -> None:
    public = {"/healthz", "/health", "/", "/openapi.json", "/docs", "/docs/{file}"}
    public |= {f"/api/v1/auth/{name}" for name in ("register", "login", "refresh", "logout")}
    public |= {"/ws", "/monitor"}  # it says who calls in its first message; it leads to the web UI
    public |= {"/admin", "/ui", "/ui/{file:.*}", "/ui/api/me", "/ui/api/session"}  # files, and who is there
    assert {route.path for route in MAIN if route.access is Access.PUBLIC} == public
    sidecar = sidecar_routes(*without_parts(SIDECAR))
    assert {route.path for route in sidecar if route.access is Access.PUBLIC} == {"/health", "/ready"}


def test_changes_are_for_operators() -> None:
    groups = dict(main_sections())
    for title in ("Models of this machine", "Downloads", "LoRA adapters"):
        for route in groups[title]:
            if set(route.methods) & {"POST", "PUT", "DELETE"}:
                assert route.access is Access.OPERATOR, route.path


def test_the_sidecar_has_its_own_dialect_of_errors() -> None:
    for route in sidecar_routes(*without_parts(SIDECAR)):
        assert route.dialect == "detail"
        assert route.is_open_while_draining == ("GET" in route.methods)


def test_the_page_lists_every_address() -> None:
    page = as_page()
    for route in MAIN:
        path = re.escape(f"`{route.path}`".replace("|", "\\|"))
        assert re.search(rf"\| {', '.join(route.methods)} \| {path} \| {route.access.value} ", page), (
            route.path
        )
    assert all(line.count(" |") >= 5 for line in page.splitlines() if line.startswith("| "))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 0, "/v1/chat/completions"),
        (["--markdown"], 0, "| POST | `/v1/chat/completions` | client | openai |"),
        (["--json"], 2, ""),
    ],
)
def test_the_command_prints_the_table(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["routes", *arguments]) == code
    said = capsys.readouterr()
    assert text in said.out
    assert ("appliance routes: error: unrecognized arguments: --json" in said.err) == (code == 2)
    assert as_text().count("\n") == len(MAIN)
