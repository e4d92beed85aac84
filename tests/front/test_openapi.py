"""The description of the API, and the page that shows it."""

import gzip
import re
from typing import Any

import httpx
import pytest

from appliance.base.errors import NotFound
from appliance.front.openapi.document import ERROR_NAMES, ERRORS, METHODS, build_document, plain_path
from appliance.front.openapi.handlers import OpenApiHandlers, read_file
from appliance.front.openapi.schemas import SCHEMAS
from appliance.front.openapi.shapes import SHAPES
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.errors import HTTP_STATUS
from appliance.front.routes_text import main_sections
from tests.front.requests import make_request
from tests.journeys.running import Start, start  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return build_document(main_sections(), version="1.2.3")


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): made
        for path, item in document["paths"].items()
        for method, made in item.items()
    }


def test_every_address_of_the_table_is_described(document: dict[str, Any]) -> None:
    made = operations(document)
    routes = [route for _, group in main_sections() for route in group]
    wanted = {
        (method, plain_path(route.path)) for route in routes for method in route.methods if method in METHODS
    }
    assert set(made) == wanted
    assert set(SHAPES) <= wanted
    ids = [one["operationId"] for one in made.values()]
    assert len(set(ids)) == len(ids)


def test_access_and_dialect_of_each_address_are_in_it(document: dict[str, Any]) -> None:
    made = operations(document)
    for _, routes in main_sections():
        for route in routes:
            for method in set(route.methods) & set(METHODS):
                one = made[method, plain_path(route.path)]
                if one["summary"] != route.summary:
                    continue  # another route of the same path is served
                assert ("security" in one) is (route.access is not Access.PUBLIC)
                error = one["responses"]["400"]["content"]["application/json"]["schema"]
                assert error == {"$ref": f"#/components/schemas/{ERROR_NAMES[route.dialect]}"}


def test_all_references_lead_somewhere(document: dict[str, Any]) -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert names == set(SCHEMAS) - {"ErrorDetail"}  # that of the sidecar's port


def test_every_status_of_our_errors_is_declared() -> None:
    assert set(HTTP_STATUS.values()) <= set(ERRORS)


async def test_the_document_has_what_is_served_here(start: Start) -> None:  # noqa: F811
    running = await start(APPLIANCE_API_KEYS="some-client-key")
    async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
        shown = await http.get("/openapi.json")
        assert (shown.status_code, shown.json()["openapi"]) == (200, "3.1.0")
        assert "/v1/chat/completions" in shown.json()["paths"]
        page = await http.get("/docs")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        addresses = re.findall(r'(?:src|href|spec-url)="([^"]*)"', page.text)
        assert addresses == ["data:,", "docs/rapidoc-min.js", "openapi.json"]
        for name in ("/docs", "/docs/"):  # with a slash, addresses are relative to another folder
            shown = await http.get(name)
            for address in re.findall(r'(?:src|spec-url)="([^"]*)"', shown.text):
                assert (await http.get(str(shown.url.join(address)))).status_code == 200, (name, address)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        script = await http.get("/docs/rapidoc-min.js")
        assert script.headers["content-encoding"] == "gzip"
        assert script.text.startswith("/*!")


async def test_the_viewer_is_sent_plain_where_gzip_is_not_taken() -> None:
    group = OpenApiHandlers(dict)
    plain = await group.viewer(make_request(file="rapidoc-min.js"))
    assert plain.body == gzip.decompress(read_file("rapidoc-min.js.gz"))
    licence = await group.viewer(make_request(file="LICENSE.txt"))
    assert licence.body.startswith(b"MIT License")
    for name in ("../handlers.py", "rapidoc-min.js.gz", "none"):
        with pytest.raises(NotFound, match=r"there are rapidoc-min\.js and LICENSE\.txt"):
            await group.viewer(make_request(file=name))
