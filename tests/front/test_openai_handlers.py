"""OpenAI's addresses on the real router with a scripted backend: models, what is sent on, and refusals."""

from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, NoSuchModel
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.front.openai.handlers import OpenAIHandlers
from tests.fakes.backend import ScriptedBackend, router_of
from tests.front.requests import json_of, make_request
from tests.front.static_manager import StaticManager, off

USER = [{"role": "user", "content": "hi"}]
CARDS = [
    ModelCard("house/model", 5, "vllm", "maker/model", ("house",), context_tokens=4096),
    ModelCard("style", 5, "vllm", "style", parent="house/model"),
]


class Backend(ScriptedBackend):
    reply = EngineReply(body=b'{"id": "1"}')

    def cards(self) -> list[ModelCard]:
        return CARDS

    async def answer(self, request: EngineRequest) -> EngineReply:
        return self.reply


class Api:
    def __init__(self, manager: StaticManager | None = None) -> None:
        clock = FakeClock()
        self.backend = Backend(clock)
        router = router_of(self.backend, clock=clock)
        self.handlers = OpenAIHandlers(router, heartbeat_s=lambda: 0, manager=manager)


async def test_models_have_openais_fields_and_what_is_known() -> None:
    body = json_of(await Api().handlers.models(make_request()))
    assert body == {
        "object": "list",
        "data": [
            {
                "id": "house/model",
                "object": "model",
                "created": 5,
                "owned_by": "vllm",
                "aliases": ["house"],
                "max_model_len": 4096,
            },
            {"id": "style", "object": "model", "created": 5, "owned_by": "vllm", "parent": "house/model"},
        ],
    }


async def test_models_have_what_their_engine_says_of_them() -> None:
    api = Api()
    meta = (("n_ctx_train", 8192), ("ftype", "F16"))
    CARDS.append(ModelCard("seeing", 5, "llamacpp", "seeing", capabilities=("multimodal",), meta=meta))
    try:
        row = json_of(await api.handlers.model(make_request(model="seeing")))
    finally:
        CARDS.pop()
    assert (row["capabilities"], row["meta"]) == (["multimodal"], {"n_ctx_train": 8192, "ftype": "F16"})


async def test_models_have_anthropics_fields_for_its_clients() -> None:
    version = {"anthropic-version": "2023-06-01"}
    body = json_of(await Api().handlers.models(make_request(headers=version)))
    assert [model["id"] for model in body["data"]] == ["house/model", "style"]
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "house/model", "style")
    row = json_of(await Api().handlers.model(make_request(headers=version, model="house")))
    assert row == body["data"][0]
    assert (row["type"], row["display_name"], row["max_input_tokens"]) == ("model", "house/model", 4096)


async def test_models_that_run_here_are_owned_by_the_user() -> None:
    handlers = Api(StaticManager(off("local"))).handlers
    row = json_of(await handlers.model(make_request(model="local")))
    assert (row["id"], row["owned_by"], row["n_ctx"] > 0) == ("local", "user", True)


@pytest.mark.parametrize("name", ["house/model", "house"])
async def test_a_model_is_found_by_id_and_alias(name: str) -> None:
    assert json_of(await Api().handlers.model(make_request(model=name)))["id"] == "house/model"


async def test_an_unknown_model_does_not_exist() -> None:
    with pytest.raises(NoSuchModel, match="The model 'nobody' does not exist here"):
        await Api().handlers.model(make_request(model="nobody"))


@pytest.mark.parametrize(
    ("handler", "body", "operation"),
    [
        ("chat", {"messages": USER, "x": 1}, Operation.CHAT),
        ("completions", {"prompt": "a"}, Operation.COMPLETION),
        ("embeddings", {"input": ["a"], "encoding_format": "base64"}, Operation.EMBEDDING),
        ("embeddings", {"input": "a", "stream": True}, Operation.EMBEDDING),
    ],
)
async def test_the_clients_bytes_are_sent_on(handler: str, body: Any, operation: Operation) -> None:
    api = Api()
    request = make_request(body={"model": "house", **body})
    response = await getattr(api.handlers, handler)(request)
    assert (response.status, response.body) == (200, b'{"id": "1"}')
    (asked,) = api.backend.asked
    assert (asked.operation, asked.raw, asked.model, asked.stream) == (
        operation,
        request.body,
        "house",
        False,
    )


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_engines_error_is_returned_unchanged(is_stream: bool) -> None:
    api = Api()
    api.backend.reply = EngineReply(status=418, body=b'{"error": "teapot"}')
    response = await api.handlers.chat(make_request(body={"messages": USER, "stream": is_stream}))
    assert (response.status, jsons.loads(response.body)) == (418, {"error": "teapot"})


@pytest.mark.parametrize(
    ("handler", "body", "param", "text"),
    [
        ("chat", {}, "messages", "at least one message"),
        ("chat", {"messages": USER, "temperature": "hot"}, "temperature", "must be a number"),
        ("completions", {}, "prompt", "`prompt` is required."),
        ("completions", {"prompt": []}, "prompt", "a string or an array with at least one element"),
        ("completions", {"prompt": 3}, "prompt", "a string or an array with at least one element"),
        ("embeddings", {"input": None}, "input", "`input` is required."),
        (
            "embeddings",
            {"input": "a", "encoding_format": "hex"},
            "encoding_format",
            '`encoding_format` must be "float" or "base64".',
        ),
    ],
)
async def test_refusals_name_the_field(handler: str, body: Any, param: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        await getattr(Api().handlers, handler)(make_request(body=body))
    assert refused.value.param == param
    assert text in refused.value.message
