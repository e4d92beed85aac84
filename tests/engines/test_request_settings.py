"""What the table says about requests for a model, applied to one request: the rules as tables."""

from typing import Any

import pytest

from appliance.base import jsons
from appliance.engines.receipts import Receipt
from appliance.engines.types import EngineRequest, NativeOptions, Operation
from appliance.engines.upstream.request_settings import apply_settings, settle, settles, with_system_prompt
from appliance.models.table.sampling import RequestSettings

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "own"}
PROMPT = {"role": "system", "content": "Be short."}


def request(
    body: dict[str, Any], operation: Operation = Operation.CHAT, *, is_raw: bool = True, native: Any = None
) -> EngineRequest:
    raw = jsons.dumps(body) if is_raw else None
    made = EngineRequest(operation, None if is_raw else body, raw, "a", False, Receipt("1"))
    made.native = native
    return made


def changed(settings: RequestSettings, body: dict[str, Any], *more: Any, **keys: Any) -> dict[str, Any]:
    """Apply the settings twice, and give the fields that differ (absent = None)."""
    made = request(body, *more, **keys)
    apply_settings(made, settings)
    once = dict(made.body)
    apply_settings(made, settings)
    assert made.body == once
    if made.raw is not None:
        assert jsons.loads(made.raw) == once
    return {key: once.get(key) for key in {**body, **once} if once.get(key) != body.get(key)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({}, {"temperature": 0.5, "max_tokens": 9}, id="absent"),
        pytest.param({"temperature": None}, {"temperature": 0.5, "max_tokens": 9}, id="null-is-absent"),
        pytest.param({"temperature": 0}, {"max_tokens": 9}, id="zero-is-given"),
        pytest.param({"max_completion_tokens": 3}, {"temperature": 0.5}, id="another-spelling"),
        pytest.param({"n_predict": 3, "temperature": 1}, {}, id="everything-is-given"),
    ],
)
def test_defaults_fill_what_a_request_leaves_out(body: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = RequestSettings({"temperature": 0.5, "max_tokens": 9})
    assert changed(settings, {"messages": [USER], **body}) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({}, {"max_tokens": 9}, id="absent"),
        pytest.param({"max_tokens": 5000}, {"max_tokens": 9}, id="replaced"),
        pytest.param(
            {"max_completion_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": None}, id="spelling"
        ),
    ],
)
def test_forced_fields_win_over_the_request(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert changed(RequestSettings(force={"max_tokens": 9}), {"messages": [USER], **body}) == expected


def test_forced_field_wins_over_a_default() -> None:
    settings = RequestSettings({"seed": 1}, {"seed": 2})
    assert changed(settings, {"messages": [USER]}) == {"seed": 2}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([USER], [PROMPT, USER], id="none"),
        pytest.param([SYSTEM, USER], [SYSTEM, USER], id="own"),
        pytest.param(
            [USER, {"role": "system", "content": ""}], [USER, {"role": "system", "content": ""}], id="empty"
        ),
        pytest.param(
            [{"role": "developer", "content": "x"}, USER],
            [{"role": "developer", "content": "x"}, USER],
            id="developer",
        ),
    ],
)
def test_system_prompt_is_for_chats_without_one(messages: list[Any], expected: list[Any]) -> None:
    settings = RequestSettings(system_prompt="Be short.")
    assert with_system_prompt({"messages": messages}, settings)["messages"] == expected
    made = request({"messages": messages})
    apply_settings(made, settings)
    assert made.body["messages"] == expected


def test_completion_gets_sampling_but_neither_prompt_nor_chat_fields() -> None:
    settings = RequestSettings({"top_k": 5, "chat_template_kwargs": {"a": 1}}, {}, "Be short.")
    assert changed(settings, {"prompt": "x"}, Operation.COMPLETION) == {"top_k": 5}


def test_embedding_is_not_changed() -> None:
    assert changed(RequestSettings({"seed": 1}, {"top_k": 1}, "x"), {"input": "a"}, Operation.EMBEDDING) == {}


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        pytest.param(NativeOptions({"repeat_penalty": 1.5}), {"n_keep": 4}, id="same-name"),
        pytest.param(NativeOptions({"num_keep": 9}), {"repeat_penalty": 1.1}, id="other-name"),
        pytest.param(NativeOptions({}, True), {"repeat_penalty": 1.1, "n_keep": 4}, id="think"),
    ],
)
def test_options_of_ollama_clients_win_over_defaults(native: NativeOptions, expected: dict[str, Any]) -> None:
    settings = RequestSettings({"repeat_penalty": 1.1, "n_keep": 4})
    assert changed(settings, {"messages": [USER]}, is_raw=False, native=native) == expected


def test_think_of_a_client_wins_over_the_default_of_the_template() -> None:
    settings = RequestSettings({"chat_template_kwargs": {"enable_thinking": False}})
    body = {"messages": [USER]}
    assert changed(settings, body, is_raw=False, native=NativeOptions({}, True)) == {}
    assert changed(settings, body, is_raw=False) == settings.defaults


def test_unchanged_request_keeps_the_bytes_of_the_client() -> None:
    made = request({"messages": [SYSTEM, USER], "seed": 1})
    made.raw = raw = b'{ "messages" : [{"role":"system","content":"own"}], "seed": 1 }'
    apply_settings(made, RequestSettings({"seed": 2}, {}, "Be short."))
    assert made.raw is raw


# ---- at engines' own addresses

FORCED = RequestSettings({"temperature": 0.5}, {"max_tokens": 9, "top_k": 1}, "Be short.")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        pytest.param(
            "/completion",
            {"prompt": "a", "n_predict": 500, "max_tokens": 600, "top_k": 7},
            {"prompt": "a", "temperature": 0.5, "n_predict": 9, "top_k": 1},
            id="native",
        ),
        pytest.param(
            "/infill",
            {"input_prefix": "a", "temperature": 0},
            {"input_prefix": "a", "temperature": 0, "n_predict": 9, "top_k": 1},
            id="infill",
        ),
        pytest.param(
            "/v1/completions",
            {"prompt": "a", "n_predict": 500},
            {"prompt": "a", "temperature": 0.5, "max_tokens": 9, "top_k": 1},
            id="completion",
        ),
        pytest.param(
            "/chat/completions",
            {"messages": [USER], "max_completion_tokens": 500},
            {"messages": [PROMPT, USER], "temperature": 0.5, "max_tokens": 9, "top_k": 1},
            id="chat",
        ),
        pytest.param(
            "/responses",
            {"input": "a", "max_output_tokens": 500},
            {
                "input": "a",
                "instructions": "Be short.",
                "temperature": 0.5,
                "max_output_tokens": 9,
                "top_k": 1,
            },
            id="responses",
        ),
        pytest.param(
            "/v1/messages",
            {"messages": [USER], "system": "own", "max_tokens": 500},
            {"messages": [USER], "system": "own", "temperature": 0.5, "max_tokens": 9, "top_k": 1},
            id="messages",
        ),
        pytest.param(
            "/invocations",
            {"prompt": "a"},
            {"prompt": "a", "temperature": 0.5, "max_tokens": 9, "top_k": 1},
            id="invocations-prompt",
        ),
        pytest.param("/invocations", {"input": "a"}, {"input": "a"}, id="invocations-embedding"),
        pytest.param(
            "/generate",
            {"text": "a", "sampling_params": {"max_new_tokens": 500, "temperature": 1}},
            {"text": "a", "sampling_params": {"max_new_tokens": 9, "temperature": 1, "top_k": 1}},
            id="sglang",
        ),
        pytest.param(
            "/generate",
            {"text": ["a", "b"], "sampling_params": [{"temperature": 1}, None]},
            {
                "text": ["a", "b"],
                "sampling_params": [
                    {"max_new_tokens": 9, "temperature": 1, "top_k": 1},
                    {"max_new_tokens": 9, "temperature": 0.5, "top_k": 1},
                ],
            },
            id="sglang-several",
        ),
        pytest.param(
            "/generate",
            {"prompt": "a", "max_tokens": 500},
            {"prompt": "a", "temperature": 0.5, "max_tokens": 9, "top_k": 1},
            id="vllm-generate",
        ),
    ],
)
def test_settings_at_an_engines_own_address(
    path: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert settles(path)
    once = settle(path, body, FORCED)
    assert once == expected
    assert settle(path, once, FORCED) == expected


@pytest.mark.parametrize("path", ["//completion", "/completion/", "/%63ompletion", "/v1//completions"])
def test_other_spellings_of_an_address_are_no_way_around(path: str) -> None:
    assert settles(path)


@pytest.mark.parametrize("path", ["/embedding", "/v1/rerank", "/tokenize", "/v1/audio/speech", "/"])
def test_addresses_that_generate_no_text_are_left_alone(path: str) -> None:
    assert not settles(path)


def test_what_a_translation_assumed_gives_way_to_defaults() -> None:
    native = NativeOptions({}, assumed=frozenset({"max_tokens"}))
    body = {"prompt": "a", "max_tokens": 512}
    keys = {"is_raw": False, "native": native}
    assert changed(RequestSettings({"max_tokens": 9}), body, Operation.COMPLETION, **keys) == {
        "max_tokens": 9
    }
    assert changed(RequestSettings({"top_k": 9}), body, Operation.COMPLETION, **keys) == {"top_k": 9}
