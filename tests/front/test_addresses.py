"""Which address is meant by one that is not in the table."""

import pytest

from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route
from appliance.front.server.addresses import find_meant_route, has_joined_bases, suggest_path


async def handler(request: Request) -> Response:
    """Say nothing."""
    return Response()


ROUTES = [
    Route(("POST",), "/v1/chat/completions", handler),
    Route(("GET",), "/v1/models", handler),
    Route(("GET",), "/v1/models/{model:.+}", handler),
    Route(("POST",), "/v1/models/{alias:.+}/{verb:load|pin}", handler),
    Route(("POST",), "/v1/embeddings", handler),
    Route(("POST",), "/api/chat", handler),
    Route(("GET",), "/api/tags", handler),
    Route(("GET",), "/api/v1/machine", handler),
]


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "//v1/chat/completions", ("/v1/chat/completions", {})),
        ("POST", "/v1//chat/completions/", ("/v1/chat/completions", {})),
        ("POST", "/api/chat/", ("/api/chat", {})),
        ("GET", "/v1/models/", ("/v1/models", {})),
        ("GET", "//v1/models/a/b/", ("/v1/models/{model:.+}", {"model": "a/b"})),
        ("POST", "/v1//models/a/b/pin", (ROUTES[3].path, {"alias": "a/b", "verb": "pin"})),
        ("GET", "//v1/chat/completions", None),  # another method
        ("POST", "/v1/chat/completions", None),  # nothing is extra
        ("POST", "/v1/chat/completions/more", None),
        ("POST", "//", None),
    ],
)
def test_extra_slashes_do_not_matter(
    method: str, path: str, meant: tuple[str, dict[str, str]] | None
) -> None:
    found = find_meant_route(ROUTES, method, path)
    assert (found and (found[0].path, found[1])) == meant


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/api/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/models/a", "/v1/models/a"),
        ("/v1/api/chat", "/api/chat"),
        ("/v1/chat", "/api/chat"),
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/tags/", "/api/tags"),
        ("/v1machine", ""),
        ("/nothing", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_another_base_url_is_suggested(path: str, near: str) -> None:
    assert suggest_path(path, lambda known: any(route.fits(known) for route in ROUTES)) == near


@pytest.mark.parametrize(
    ("path", "is_joined"),
    [
        ("/v1/v1/chat/completions", True),
        ("/v1/api/chat", True),
        ("/v1/apiary", False),
        ("/api/v1/x", False),
        ("/v1/chat", False),
    ],
)
def test_two_base_urls_in_one_path_are_seen(path: str, is_joined: bool) -> None:
    assert has_joined_bases(path) is is_joined
