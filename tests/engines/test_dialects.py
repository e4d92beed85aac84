"""What each dialect reads from an engine's pages: health, facts, recognition, errors, adapters.

The pages are those that the engines publish (llama-server's README; vLLM's and SGLang's servers, by
generation); no network.
"""

from typing import Any, get_args

import pytest

from appliance.engines.dialects.contract import (
    EngineHealth,
    LoraDialect,
    LoraReply,
    SleepingDialect,
    TokenCountingDialect,
)
from appliance.engines.dialects.queries import UnexpectedReply
from appliance.engines.dialects.table import AUTO, DIALECTS
from appliance.engines.specs import EngineKind
from tests.fakes.page_client import PageClient


def row(name: str, owner: str | None, **more: Any) -> dict[str, Any]:
    owned = {"owned_by": owner} if owner else {}
    return {"id": name, "object": "model", "created": 1_700_000_000} | owned | more


def models(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(rows)}


LLAMA_PROPS = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 3, "model_path": "/m/tiny.gguf"}
LLAMA_LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
VLLM_ROWS = models(
    row("tiny", "vllm", root="tiny", parent=None, max_model_len=2048),
    row("sql-lora", "vllm", root="/adapters/sql", parent="tiny", max_model_len=None),
)
SGLANG_ROWS = models(
    row("tiny", "sglang", root="tiny", max_model_len=8192),
    row("sql-lora", "sglang", root="/adapters/sql", parent="tiny", max_model_len=None),
)


def test_operators_can_name_every_kind_of_the_table() -> None:
    assert get_args(EngineKind) == (AUTO, *DIALECTS)


# ---- health


@pytest.mark.parametrize(
    ("kind", "path", "status", "body", "health"),
    [
        ("llamacpp", "/health", 200, {"status": "ok"}, EngineHealth(True)),
        ("llamacpp", "/health", 503, LLAMA_LOADING, EngineHealth(False, True, "loading its model")),
        (
            "llamacpp",
            "/health",
            200,
            {"status": "no slot available"},
            EngineHealth(False, False, "/health says 'no slot available'"),
        ),
        ("llamacpp", "/health", 500, b"", EngineHealth(False, False, "/health answered 500")),
        ("llamacpp", "/health", 200, b"<html>", EngineHealth(False, False, "/health is not a JSON object")),
        ("llamacpp", "/health", 200, [], EngineHealth(False, False, "/health is not a JSON object")),
        ("vllm", "/health", 200, b"", EngineHealth(True)),
        ("vllm", "/health", 503, b"", EngineHealth(False, False, "/health answered 503")),
        ("vllm", "/health", 500, b"", EngineHealth(False, False, "/health answered 500")),
        ("sglang", "/health", 200, b"", EngineHealth(True)),
        ("sglang", "/health", 503, b"", EngineHealth(False, True, "/health answered 503")),
        ("openai", "/health", 200, b"", EngineHealth(True)),
        ("openai", "/health", 503, b"", EngineHealth(False, True, "/health answered 503")),
        ("openai", "/health", 500, b"", EngineHealth(False, False, "/health answered 500")),
        ("openai", "/v1/models", 200, models(), EngineHealth(True)),
        ("openai", "/v1/models", 401, b"", EngineHealth(False, False, "/v1/models answered 401")),
    ],
)
async def test_health_is_read_from_the_engines_page(
    kind: str, path: str, status: int, body: Any, health: EngineHealth
) -> None:
    assert await DIALECTS[kind].probe_health(PageClient().page(path, status, body)) == health


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_openai_health_falls_back_to_the_model_list(status: int) -> None:
    client = PageClient().page("/health", status).page("/v1/models", 200, models())
    assert (await DIALECTS["openai"].probe_health(client)).is_ready


# ---- facts


def error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": "x"}}


@pytest.mark.parametrize(
    ("kind", "path", "page", "is_text"),
    [
        ("llamacpp", "/v1/embeddings", (501, error(501, "This server does not support embeddings.")), True),
        ("llamacpp", "/v1/embeddings", (400, error(400, '"input" or "content" must be provided')), False),
        ("llamacpp", "/v1/embeddings", (400, error(400, "no")), True),  # it says nothing of it
        ("llamacpp", "/v1/embeddings", (401, error(401, "Invalid API Key")), True),
        ("llamacpp", "/v1/embeddings", (404, b""), True),
        ("llamacpp", "/v1/embeddings", (500, b"input"), True),
        ("sglang", "/get_model_info", (200, {"model_path": "m", "is_generation": True}), True),
        ("sglang", "/get_model_info", (200, {"model_path": "m", "is_generation": False}), False),
        ("sglang", "/model_info", (200, {"model_path": "m", "is_generation": False}), False),
        ("sglang", "/get_model_info", (200, {"model_path": "m"}), True),
        ("sglang", "/get_model_info", (200, b"<html>"), True),
        ("sglang", "/get_model_info", (200, [False]), True),
        ("sglang", "/get_model_info", (500, b""), True),
    ],
)
async def test_a_server_that_gives_only_embeddings_is_known(
    kind: str, path: str, page: tuple[int, Any], is_text: bool
) -> None:
    client = PageClient().page("/v1/models", 200, models(row("tiny", kind))).page(path, *page)
    facts = await DIALECTS[kind].read_facts(client)
    assert facts.models["tiny"].card.is_text is is_text


async def test_a_server_of_several_models_is_not_asked_what_it_is_for() -> None:
    listed = models(row("a", "llamacpp"), row("b", "llamacpp"))
    client = PageClient().page("/v1/models", 200, listed).page("/v1/embeddings", 400, error(400, "input"))
    facts = await DIALECTS["llamacpp"].read_facts(client)
    assert [one.card.is_text for one in facts.models.values()] == [True, True]
    assert client.commands == []


@pytest.mark.parametrize(
    ("kind", "pages", "context_tokens", "slots", "names"),
    [
        (
            "llamacpp",
            {"/props": LLAMA_PROPS, "/v1/models": models(row("tiny", "llamacpp"))},
            4096,
            3,
            {"tiny": 4096},
        ),
        ("llamacpp", {"/v1/models": models(row("tiny", "llamacpp"))}, 0, 0, {"tiny": 0}),  # no /props
        (
            "llamacpp",
            {
                "/props": {"default_generation_settings": None, "total_slots": "3"},
                "/v1/models": models(row("tiny", None)),
            },
            0,
            0,
            {"tiny": 0},
        ),
        (
            "llamacpp",  # router mode: a model that failed to load is not served, an unloaded one is
            {
                "/v1/models": models(
                    row("a", "llamacpp", status={"value": "unloaded"}),
                    row("b", "llamacpp", status={"value": "unloaded", "failed": True}),
                )
            },
            0,
            0,
            {"a": 0},
        ),
        ("vllm", {"/v1/models": VLLM_ROWS}, 2048, 0, {"tiny": 2048, "sql-lora": 2048}),
        ("vllm", {"/v1/models": models()}, 0, 0, {}),
        ("sglang", {"/v1/models": SGLANG_ROWS}, 8192, 0, {"tiny": 8192, "sql-lora": 8192}),
        (
            "openai",
            {"/v1/models": models(row("a", None, max_model_len=100), row("b", "x", max_model_len=50))},
            50,
            0,
            {"a": 100, "b": 50},
        ),
        ("openai", {"/v1/models": models({"id": ""}, {"id": 3}, row("a", None))}, 0, 0, {"a": 0}),
    ],
)
async def test_facts_are_models_context_and_slots(
    kind: str, pages: dict[str, Any], context_tokens: int, slots: int, names: dict[str, int]
) -> None:
    client = PageClient()
    for path, body in pages.items():
        client.page(path, 200, body)
    facts = await DIALECTS[kind].read_facts(client)
    assert (facts.context_tokens, facts.slots) == (context_tokens, slots)
    assert {name: one.card.context_tokens for name, one in facts.models.items()} == names


@pytest.mark.parametrize(
    ("named", "given", "capabilities", "meta"),
    [
        ({"capabilities": ["completion", "multimodal"]}, {}, ("completion", "multimodal"), {}),
        ({}, {"meta": None}, (), {}),  # while it loads
        ({}, {"meta": {"n_embd": 384, "size": 3489792, "ftype": "F16", "x": 0.5}}, (), {"n_embd": 384}),
        ({"capabilities": "completion"}, {"meta": [1]}, (), {}),
        (
            {"capabilities": [1, None, "a" * 65, "", "b"]},
            {"meta": {"n": 2**60, "m": {}, "k": True}},
            ("b",),
            {},
        ),
        (
            {"capabilities": ["a"] * 99},
            {"meta": {"t" * 65: 1, "long": "t" * 201} | {f"k{n}": n for n in range(99)}},
            ("a",) * 16,
            {"k0": 0, "k29": 29},
        ),
    ],
)
async def test_what_llamacpp_says_of_a_model_is_read_within_bounds(
    named: dict[str, Any], given: dict[str, Any], capabilities: tuple[str, ...], meta: dict[str, Any]
) -> None:
    client = PageClient()
    page = models(row("tiny", "llamacpp", **given))
    client.page("/v1/models", 200, page | {"models": [{"name": "tiny", **named}, {"name": 5}, "x"]})
    card = (await DIALECTS["llamacpp"].read_facts(client)).models["tiny"].card
    assert card.capabilities == capabilities
    assert meta.items() <= dict(card.meta).items()
    assert len(card.meta) <= 32
    assert all(isinstance(value, (int, float, str)) for _, value in card.meta)


@pytest.mark.parametrize("others", [None, 5, {}, [[]], ["tiny"], [{"name": ["tiny"]}]])
async def test_an_odd_list_beside_the_models_is_passed_over(others: Any) -> None:
    client = PageClient()
    client.page("/v1/models", 200, models(row("tiny", "llamacpp")) | {"models": others})
    card = (await DIALECTS["llamacpp"].read_facts(client)).models["tiny"].card
    assert (card.capabilities, card.meta) == ((), ())


async def test_llamacpp_lists_adapters_by_their_file_names() -> None:
    client = (
        PageClient()
        .page("/props", 200, LLAMA_PROPS)
        .page("/v1/models", 200, models(row("tiny", "llamacpp")))
        .page("/lora-adapters", 200, [{"id": 1, "path": "/a/sql-lora.gguf", "scale": 0.0}, {"id": "x"}])
    )
    adapter = (await DIALECTS["llamacpp"].read_facts(client)).models["sql-lora"]
    assert (adapter.card.parent, adapter.card.path, adapter.upstream) == ("tiny", "/a/sql-lora.gguf", "tiny")
    assert adapter.extra == (("lora", [{"id": 1, "scale": 1.0}]),)


async def test_llamacpp_adapters_need_a_single_model() -> None:
    """With several models (router mode) nothing says which of them an adapter belongs to."""
    client = (
        PageClient()
        .page("/v1/models", 200, models(row("a", "llamacpp"), row("b", "llamacpp")))
        .page("/lora-adapters", 200, [{"id": 1, "path": "/a/sql-lora.gguf"}])
    )
    assert set((await DIALECTS["llamacpp"].read_facts(client)).models) == {"a", "b"}


@pytest.mark.parametrize(
    ("kind", "upstream", "aliases"),
    [("vllm", "sql-lora", ()), ("sglang", "tiny:sql-lora", ("tiny:sql-lora",))],
)
async def test_adapters_are_requested_by_the_name_that_reaches_them(
    kind: str, upstream: str, aliases: tuple[str, ...]
) -> None:
    """SGLang's base model would answer to an adapter's bare name, silently."""
    client = PageClient().page("/v1/models", 200, {"vllm": VLLM_ROWS, "sglang": SGLANG_ROWS}[kind])
    adapter = (await DIALECTS[kind].read_facts(client)).models["sql-lora"]
    assert (adapter.upstream, adapter.card.aliases, adapter.card.parent) == (upstream, aliases, "tiny")
    assert adapter.card.path == "/adapters/sql"


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ({"/v1/models": (500, b"")}, "/v1/models answered 500"),
        ({"/v1/models": (200, b"{")}, "/v1/models is not JSON"),
        ({"/v1/models": (200, [])}, "/v1/models is not a JSON object"),
        ({"/v1/models": (200, {"data": {}})}, "/v1/models has no list `data`"),
        ({"/props": (200, b"{"), "/v1/models": (200, models())}, "/props is not JSON"),
        (
            {"/v1/models": (200, models(row("tiny", None))), "/lora-adapters": (200, b"{")},
            "/lora-adapters is not JSON",
        ),
    ],
)
async def test_pages_that_make_no_sense_are_named(pages: dict[str, tuple[int, Any]], message: str) -> None:
    client = PageClient()
    client.pages = pages
    with pytest.raises(UnexpectedReply, match=message):
        await DIALECTS["llamacpp"].read_facts(client)


# ---- llama-server asleep


WAKING = {"/lora-adapters", "/v1/embeddings", "/slots"}


def llama_pages(*, is_sleeping: bool, model: str = "tiny", created: int = 1) -> dict[str, Any]:
    rows = [row(model, "llamacpp") | {"created": created}]
    adapters = [{"id": 0, "path": "/a/sql.gguf", "scale": 1.0}]
    return {
        "/props": (200, LLAMA_PROPS | {"is_sleeping": is_sleeping}),
        "/v1/models": (200, models(*rows)),
        "/lora-adapters": (200, adapters),
    }


async def test_what_was_read_is_read_again_without_waking_it() -> None:
    llama = DIALECTS["llamacpp"]
    assert isinstance(llama, SleepingDialect)
    client = PageClient(llama_pages(is_sleeping=False))
    first = await llama.read_facts(client)
    assert set(first.models) == {"tiny", "sql"}
    for is_sleeping in (False, True):
        client.pages = llama_pages(is_sleeping=is_sleeping, created=9)
        client.queried.clear()
        assert await llama.reread_facts(client, first) == first
        assert WAKING.isdisjoint(client.queried)


async def test_a_change_while_awake_is_read_whole() -> None:
    llama = DIALECTS["llamacpp"]
    assert isinstance(llama, SleepingDialect)
    first = await llama.read_facts(PageClient(llama_pages(is_sleeping=False)))
    client = PageClient(llama_pages(is_sleeping=False, model="other"))
    assert set((await llama.reread_facts(client, first)).models) == {"other", "sql"}
    assert "/lora-adapters" in client.queried


async def test_one_that_sleeps_at_the_first_contact_is_read_when_awake() -> None:
    llama = DIALECTS["llamacpp"]
    assert isinstance(llama, SleepingDialect)
    client = PageClient(llama_pages(is_sleeping=True))
    first = await llama.read_facts(client)
    assert (set(first.models), first.context_tokens) == ({"tiny"}, 4096)
    again = await llama.reread_facts(client, first)
    assert set(again.models) == {"tiny"}
    assert WAKING.isdisjoint(client.queried)
    client.pages = llama_pages(is_sleeping=False)
    assert set((await llama.reread_facts(client, again)).models) == {"tiny", "sql"}


# ---- recognition


@pytest.mark.parametrize(
    ("pages", "kind"),
    [
        ({"/props": LLAMA_PROPS}, "llamacpp"),
        ({"/v1/models": models(row("tiny", "llamacpp"))}, "llamacpp"),
        ({"/v1/models": VLLM_ROWS}, "vllm"),
        ({"/v1/models": models(row("tiny", None)), "/metrics": "#\nvllm:num_requests_running 1\n"}, "vllm"),
        ({"/v1/models": models(row("tiny", None)), "/metrics": "#\nvllm_num_requests_running 1\n"}, "vllm"),
        ({"/v1/models": SGLANG_ROWS}, "sglang"),
        ({"/v1/models": models(row("t", None)), "/get_model_info": {"model_path": "tiny"}}, "sglang"),
        ({"/v1/models": models(row("t", None)), "/model_info": {"model_path": "tiny"}}, "sglang"),
        ({"/v1/models": models(row("tiny", "somebody"))}, "openai"),
    ],
)
async def test_the_first_dialect_that_matches_is_the_engines(pages: dict[str, Any], kind: str) -> None:
    client = PageClient()
    for path, body in pages.items():
        client.page(path, 200, body)
    first = None
    for dialect in DIALECTS.values():
        if first is None and await dialect.matches(client):
            first = dialect.kind
    assert first == kind


@pytest.mark.parametrize("kind", ["llamacpp", "vllm", "sglang"])
async def test_a_server_without_a_model_list_is_not_matched(kind: str) -> None:
    assert not await DIALECTS[kind].matches(PageClient())


# ---- adapters, at run time


def lora(kind: str) -> LoraDialect:
    dialect = DIALECTS[kind]
    assert isinstance(dialect, LoraDialect)
    return dialect


def test_an_unknown_openai_server_loads_no_adapters() -> None:
    assert not isinstance(DIALECTS["openai"], LoraDialect)


VLLM_LOAD, SGLANG_LOAD = "/v1/load_lora_adapter", "/load_lora_adapter"
VLLM_UNLOAD, SGLANG_UNLOAD = "/v1/unload_lora_adapter", "/unload_lora_adapter"


def nested(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


@pytest.mark.parametrize(
    ("kind", "path", "status", "body", "outcome", "is_loaded"),
    [
        ("vllm", VLLM_LOAD, 200, "Success: LoRA adapter 'sql' added successfully.", "done", True),
        ("vllm", VLLM_LOAD, 400, nested("'sql' has already been loaded."), "already", True),
        ("vllm", VLLM_LOAD, 400, nested("no adapter at /a/sql"), "refused", False),
        ("vllm", VLLM_LOAD, 404, nested("no adapter at /a/sql"), "refused", False),
        ("vllm", VLLM_LOAD, 404, {"detail": "Not Found"}, "off", False),
        ("vllm", VLLM_LOAD, 405, b"", "off", False),
        ("sglang", SGLANG_LOAD, 200, {"success": True}, "done", True),
        ("sglang", SGLANG_LOAD, 200, {"success": False, "error_message": "bad"}, "refused", False),
        ("sglang", SGLANG_LOAD, 400, {"error_message": "sql is already loaded."}, "already", True),
        ("sglang", SGLANG_LOAD, 400, {"error_message": "LoRA is not enabled."}, "off", False),
        ("sglang", SGLANG_LOAD, 404, b"", "off", False),
        ("sglang", SGLANG_LOAD, 500, b"[]", "refused", False),
    ],
)
async def test_loading_an_adapter(
    kind: str, path: str, status: int, body: Any, outcome: str, is_loaded: bool
) -> None:
    client = PageClient().page(path, status, body)
    reply = await lora(kind).load_adapter(client, "sql", "/a/sql")
    assert (reply.outcome, reply.is_loaded, reply.status) == (outcome, is_loaded, status)
    assert bool(reply.remedy) is (outcome == "off")
    assert client.commands == [(path, {"lora_name": "sql", "lora_path": "/a/sql"})]


async def test_sglang_gets_the_flag_of_a_pinned_adapter() -> None:
    client = PageClient().page(SGLANG_LOAD, 200, {"success": True})
    await lora("sglang").load_adapter(client, "sql", "/a/sql", is_pinned=True)
    assert client.commands[0][1]["pinned"] is True


@pytest.mark.parametrize(
    ("kind", "path", "status", "body", "outcome", "is_unloaded"),
    [
        ("vllm", VLLM_UNLOAD, 200, "Success: LoRA adapter 'sql' removed successfully.", "done", True),
        ("vllm", VLLM_UNLOAD, 404, nested("The lora adapter 'sql' cannot be found."), "unknown", True),
        ("vllm", VLLM_UNLOAD, 400, nested("'sql' cannot be found."), "unknown", True),
        ("vllm", VLLM_UNLOAD, 404, {"detail": "Not Found"}, "off", False),
        ("vllm", VLLM_UNLOAD, 500, nested("oops"), "refused", False),
        ("sglang", SGLANG_UNLOAD, 200, {"success": True}, "done", True),
        ("sglang", SGLANG_UNLOAD, 400, {"error_message": "sql does not exist."}, "unknown", True),
        ("sglang", SGLANG_UNLOAD, 400, {"error_message": "LoRA is not enabled."}, "off", False),
        ("sglang", SGLANG_UNLOAD, 500, "oops", "refused", False),
    ],
)
async def test_unloading_an_adapter(
    kind: str, path: str, status: int, body: Any, outcome: str, is_unloaded: bool
) -> None:
    client = PageClient().page(path, status, body)
    reply = await lora(kind).unload_adapter(client, "sql", {"lora_int_id": 7})
    assert (reply.outcome, reply.is_unloaded, reply.status) == (outcome, is_unloaded, status)
    assert client.commands == [(path, {"lora_int_id": 7, "lora_name": "sql"})]


LLAMA_ADAPTERS = [{"id": 0, "path": "/a/sql.gguf", "scale": 0.0}, {"id": 1, "path": "/b/x/style.gguf"}]


@pytest.mark.parametrize(
    ("path", "outcome", "engine_name"),
    [
        ("/a/sql.gguf", "already", "sql"),  # that very file
        ("/elsewhere/sql.gguf", "already", "sql"),  # the same file name: a container mounts it elsewhere
        ("/b/x", "already", "style"),  # the folder that it lies in
        ("/a/other.gguf", "off", ""),
    ],
)
async def test_llamacpp_has_only_the_adapters_of_its_start(path: str, outcome: str, engine_name: str) -> None:
    client = PageClient().page("/lora-adapters", 200, LLAMA_ADAPTERS)
    reply = await lora("llamacpp").load_adapter(client, "sql", path)
    assert (reply.outcome, reply.engine_name) == (outcome, engine_name)
    assert not client.commands


@pytest.mark.parametrize(("name", "outcome"), [("sql", "off"), ("other", "unknown")])
async def test_llamacpp_keeps_the_adapters_of_its_start(name: str, outcome: str) -> None:
    client = PageClient().page("/lora-adapters", 200, LLAMA_ADAPTERS)
    assert (await lora("llamacpp").unload_adapter(client, name, {})).outcome == outcome


async def test_only_llamacpp_is_queried_before_an_adapter_request() -> None:
    """Seen with b11669: an unknown adapter id is ignored, and the base model answers."""
    facts = (
        PageClient()
        .page("/v1/models", 200, models(row("tiny", "llamacpp")))
        .page("/lora-adapters", 200, LLAMA_ADAPTERS)
    )
    adapter = (await DIALECTS["llamacpp"].read_facts(facts)).models["sql"]
    moved = PageClient().page("/lora-adapters", 200, [{"id": 0, "path": "/b/other.gguf"}])
    restarted = PageClient().page("/lora-adapters", 501)
    assert [await lora("llamacpp").has_adapter(client, adapter) for client in (facts, moved, restarted)] == [
        True,
        False,
        False,
    ]
    for kind in ("vllm", "sglang"):
        assert await lora(kind).has_adapter(PageClient(), adapter)


async def test_an_adapter_that_the_engine_does_not_list_is_described() -> None:
    base = (await DIALECTS["vllm"].read_facts(PageClient().page("/v1/models", 200, VLLM_ROWS))).models["tiny"]
    of_vllm = lora("vllm").describe_adapter(base, "sql", "/a/sql")
    of_sglang = lora("sglang").describe_adapter(base, "sql", "/a/sql")
    assert (of_vllm.upstream, of_vllm.card.parent, of_vllm.card.path) == ("sql", "tiny", "/a/sql")
    assert (of_sglang.upstream, of_sglang.card.context_tokens) == ("tiny:sql", 2048)
    with pytest.raises(UnexpectedReply, match="does not list the adapter 'sql'"):
        lora("llamacpp").describe_adapter(base, "sql", "/a/sql")


def test_a_lora_reply_says_whether_the_engine_has_the_adapter() -> None:
    outcomes = ("done", "already", "unknown", "off", "refused")
    replies = [LoraReply(outcome, 200, "") for outcome in outcomes]  # type: ignore[arg-type]
    assert [reply.outcome for reply in replies if reply.is_loaded] == ["done", "already"]
    assert [reply.outcome for reply in replies if reply.is_unloaded] == ["done", "unknown"]


# ---- counting tokens

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"type": "function"}],
    "max_tokens": 5,
}
PROMPT = {name: CHAT[name] for name in ("model", "messages", "tools")}


async def test_llamacpp_renders_a_prompt_and_counts_its_tokens() -> None:
    client = PageClient().page("/apply-template", 200, {"prompt": "<user>hello"})
    client.page("/tokenize", 200, {"tokens": [1, 2, 3]})
    dialect = DIALECTS["llamacpp"]
    assert isinstance(dialect, TokenCountingDialect)
    assert await dialect.count_tokens(client, CHAT) == 3
    assert client.commands == [
        ("/apply-template", PROMPT),
        ("/tokenize", {"content": "<user>hello", "add_special": True, "parse_special": True}),
    ]


async def test_vllm_counts_a_chats_tokens() -> None:
    client = PageClient().page("/tokenize", 200, {"count": 7, "max_model_len": 100, "tokens": [1] * 7})
    dialect = DIALECTS["vllm"]
    assert isinstance(dialect, TokenCountingDialect)
    assert await dialect.count_tokens(client, CHAT) == 7
    assert client.commands == [("/tokenize", PROMPT)]


@pytest.mark.parametrize(
    ("kind", "pages", "said"),
    [
        ("llamacpp", {}, "/apply-template answered 404"),
        ("llamacpp", {"/apply-template": (200, {"prompt": 5})}, "no `prompt`"),
        ("llamacpp", {"/apply-template": (200, {"prompt": "x"})}, "/tokenize answered 404"),
        ("vllm", {}, "/tokenize answered 404"),
        ("vllm", {"/tokenize": (200, {"count": -1})}, "no `count`"),
        ("vllm", {"/tokenize": (200, {"count": True})}, "no `count`"),
        ("vllm", {"/tokenize": (200, "<html>")}, "/tokenize is not JSON"),
    ],
)
async def test_a_count_that_makes_no_sense_is_refused(kind: str, pages: dict[str, Any], said: str) -> None:
    dialect = DIALECTS[kind]
    assert isinstance(dialect, TokenCountingDialect)
    with pytest.raises(UnexpectedReply, match=said):
        await dialect.count_tokens(PageClient(pages), CHAT)


@pytest.mark.parametrize("kind", ["sglang", "openai"])
def test_other_engines_count_no_chats_tokens(kind: str) -> None:
    assert not isinstance(DIALECTS[kind], TokenCountingDialect)
