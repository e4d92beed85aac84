"""Which requests are passed on, who may send them, which header fields change."""

import pytest

from appliance.front.passthrough.rules import access_of, is_work, pinned, request_fields, response_fields
from appliance.front.pipeline.access import Access


@pytest.mark.parametrize(
    ("method", "path", "access"),
    [
        ("POST", "/completion", Access.CLIENT),
        ("POST", "/tokenize", Access.CLIENT),
        ("GET", "/props", Access.CLIENT),
        ("HEAD", "/props", Access.CLIENT),
        ("POST", "/v1/messages", Access.CLIENT),
        ("POST", "/responses", Access.CLIENT),
        ("POST", "/responses/input_tokens", Access.CLIENT),
        ("POST", "/v1/chat/completions/input_tokens", Access.CLIENT),
        ("POST", "/chat/completions/input_tokens", Access.CLIENT),
        ("GET", "/responses/input_tokens", Access.OPERATOR),
        ("POST", "/v1/rerank", Access.CLIENT),
        ("POST", "/generate", Access.CLIENT),
        ("POST", "/props", Access.OPERATOR),
        ("GET", "/slots", Access.OPERATOR),
        ("POST", "/slots/0", Access.OPERATOR),
        ("GET", "/metrics", Access.OPERATOR),
        ("POST", "/lora-adapters", Access.OPERATOR),
        ("POST", "/v1/load_lora_adapter", Access.OPERATOR),
        ("POST", "/flush_cache", Access.OPERATOR),
        ("POST", "/sleep", Access.OPERATOR),
        ("POST", "/collective_rpc", Access.OPERATOR),
        ("GET", "/get_server_info", Access.OPERATOR),
        ("DELETE", "/completion", Access.OPERATOR),
        ("POST", "/update_weights_from_disk", Access.OPERATOR),
        ("GET", "/anything", Access.OPERATOR),
        # Ways to write a path that a server may read as another one: whatever they mean, they are no client's.
        ("GET", "//props", Access.OPERATOR),
        ("GET", "/props/", Access.OPERATOR),
        ("POST", "/completion/../slots/0", Access.OPERATOR),
        ("POST", "/%63ompletion", Access.OPERATOR),
        ("GET", "/PROPS", Access.OPERATOR),
        ("GET", "/props;x", Access.OPERATOR),
    ],
)
def test_clients_may_compute_and_operators_may_do_the_rest(method: str, path: str, access: Access) -> None:
    assert access_of(method, path) is access


def test_listed_questions_take_no_slot() -> None:
    assert is_work("POST", "/completion")
    assert not is_work("GET", "/props")
    assert not is_work("POST", "/tokenize")


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/backends/a/slots", ("a", "/slots")),
        ("/backends/a", ("a", "/")),
        ("/backends/a/", ("a", "/")),
        ("/backends/a?x=1", ("a", "/?x=1")),
        ("/backends/llm-1:8080/v1/a%2Fb?c=%20", ("llm-1:8080", "/v1/a%2Fb?c=%20")),
        ("/backends//slots", None),
        ("/backends", None),
        ("/slots", None),
        ("/x/backends/a/slots", None),
    ],
)
def test_a_pinned_address_is_taken_apart(target: str, found: tuple[str, str] | None) -> None:
    assert pinned(target) == found


def up(*fields: tuple[str, str]) -> list[tuple[str, str]]:
    return request_fields(
        fields,
        peer="10.0.0.7",
        scheme="http",
        host="appliance:14000",
        request_id="req_1",
        own=[("Authorization", "Bearer theirs")],
    )


def test_client_keys_and_hop_fields_are_not_sent() -> None:
    out = up(
        ("Host", "appliance:14000"),
        ("Authorization", "Bearer mine"),
        ("X-Api-Key", "mine"),
        ("api-key", "mine"),
        ("Cookie", "s=mine"),
        ("Proxy-Authorization", "Basic mine"),
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "mine"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("x-appliance-backend", "a"),
        ("X-Request-Priority", "high"),
    )
    assert "mine" not in str(out)
    assert [name for name, _ in out] == [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "Via",
        "X-Request-Id",
        "Authorization",
    ]
    assert ("Authorization", "Bearer theirs") in out


def test_end_to_end_fields_are_sent_in_order() -> None:
    out = up(
        ("Accept", "a"), ("X-Two", "1"), ("Content-Encoding", "gzip"), ("X-Two", "2"), ("Content-Length", "5")
    )
    assert out[:5] == [
        ("Accept", "a"),
        ("X-Two", "1"),
        ("Content-Encoding", "gzip"),
        ("X-Two", "2"),
        ("Content-Length", "5"),
    ]


def test_entries_of_earlier_proxies_are_kept() -> None:
    out = dict(
        up(
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "api.example"),
            ("Via", "1.1 edge"),
        )
    )
    assert out["X-Forwarded-For"] == "192.0.2.1, 10.0.0.7"
    assert (out["X-Forwarded-Proto"], out["X-Forwarded-Host"], out["Via"]) == (
        "https",
        "api.example",
        "1.1 edge, 1.1 inference-appliance",
    )


def test_a_response_keeps_end_to_end_fields() -> None:
    out = response_fields(
        [
            ("Content-Type", "text/plain"),
            ("Set-Cookie", "a"),
            ("Set-Cookie", "b"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("Transfer-Encoding", "chunked"),
            ("Server", "engine/1.2.3"),
            ("Access-Control-Allow-Origin", "*"),
            ("ETag", '"x"'),
        ]
    )
    assert out == [("Content-Type", "text/plain"), ("Set-Cookie", "a"), ("Set-Cookie", "b"), ("ETag", '"x"')]
