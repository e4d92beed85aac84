"""Models that run here, as Ollama's clients see them: real model files, a manager of plain values, the official client over HTTP."""

import asyncio
import hashlib
import io
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ollama
import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, NoSuchModel, Unavailable
from appliance.base.metrics.registry import Metrics
from appliance.base.tasks import Tasks
from appliance.base.watch import Watched
from appliance.engines.receipts import Receipt, Receipts
from appliance.engines.settings import EngineSettings
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation, ServedModel
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline
from appliance.front.pipeline.request import Request
from appliance.front.server.server import HttpServer, serving_http
from appliance.front.settings import FrontSettings
from appliance.models.table.library import ModelLibrary
from tests.fakes.backend import ScriptedBackend, router_of
from tests.front.fake_manager import GIB, LOAD_S, FakeManager, runner
from tests.tools.tiny_models import TEMPLATE

USER = [{"role": "user", "content": "hi"}]
CHAT = jsons.dumps(
    {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
)
VECTOR = jsons.dumps({"data": [{"index": 0, "embedding": [3.0, 4.0]}], "usage": {"prompt_tokens": 1}})
REMOTE = ModelCard("house/model", 1_700_000_000, "novita", "maker/Llama-9b", ("house",))
CHANGED_S = 1_750_000_000


class Backend(ScriptedBackend):
    """Serves the manager's models, and one relayed model; no other name."""

    def __init__(self, clock: FakeClock, manager: FakeManager) -> None:
        super().__init__(clock)
        self._manager = manager

    def cards(self) -> list[ModelCard]:
        return [*(ModelCard(alias, CHANGED_S, "user", alias) for alias in self._manager.views), REMOTE]

    def find_model(self, model: str) -> ServedModel | None:
        return next(
            (ServedModel(card, card.upstream) for card in self.cards() if model in {card.id, *card.aliases}),
            None,
        )

    async def answer(self, request: EngineRequest) -> EngineReply:
        return EngineReply(body=VECTOR if request.operation is Operation.EMBEDDING else CHAT)


class Api:
    """The handlers with a manager, a library and real files."""

    def __init__(self, folder: Path, tiny: Path, tasks: Tasks) -> None:
        self.clock = FakeClock()
        self.manager = FakeManager(self.clock)
        for name in ("tiny-chat", "tiny-embed"):
            shutil.copy(tiny / f"{name}.gguf", folder)
            os.utime(folder / f"{name}.gguf", (CHANGED_S, CHANGED_S))
        self.chat = folder / "tiny-chat.gguf"
        self.manager.put(self.chat, params={"n_ctx": 8192, "rope_freq_base": 10000.0}, slots=2)
        self.manager.put(folder / "tiny-embed.gguf", params={"embedding": True, "n_ctx": 512})
        self.backend = Backend(self.clock, self.manager)
        self.router = router_of(self.backend, settings=EngineSettings(_env_file=None), clock=self.clock)
        self.library = ModelLibrary(lambda: self.manager.catalogue.models, tasks=tasks, digest_wait_s=60.0)
        self.handlers = OllamaHandlers(
            self.router, clock=self.clock, manager=self.manager, library=self.library
        )  # type: ignore[arg-type]

    async def result(self, handler: str, ask: Any = None) -> Any:
        """Return the response's one JSON object."""
        path = next(route.path for route in self.handlers.routes() if route.handler.__name__ == handler)
        request = Request(
            "POST",
            path,
            {},
            b"" if ask is None else jsons.dumps(ask),
            "127.0.0.1",
            "req_1",
            Receipt("req_1"),
            path,
            began_s=self.clock.monotonic_s(),
        )
        response = await getattr(self.handlers, handler)(request)
        assert response.pieces is None
        return jsons.loads(response.body)

    def load(self, alias: str, *runners: dict[str, Any], **values: Any) -> None:
        self.manager.put(
            self.manager.views[alias].path,
            params=self.manager.catalogue.models[alias].params.model_dump(),
            **{
                "status": "ready",
                "slots": 2,
                "runners": tuple(runner(alias, **one) for one in runners),
                **values,
            },
        )


@pytest.fixture
async def api(tmp_path: Path, tiny_models: Path) -> AsyncIterator[Api]:
    async with Tasks() as tasks:
        yield Api(tmp_path, tiny_models, tasks)


@pytest.fixture
async def client(api: Api) -> AsyncIterator[ollama.AsyncClient]:
    """The official client, over HTTP to a real server with the handlers' addresses."""
    pipeline = RequestPipeline(
        FrontSettings(_env_file=None),
        receipts=Receipts(),
        metrics=Metrics(),
        access_log=AccessLog(clock=api.clock, stream=io.StringIO()),
        clock=api.clock,
        state=Watched("serving"),
    )
    routes = api.handlers.routes()
    async with (
        Tasks() as tasks,
        serving_http(
            HttpServer(routes, pipeline, clock=api.clock),
            [("127.0.0.1", 0)],
            hurry=asyncio.Event(),
            tasks=tasks,
            grace_s=lambda: 1.0,
        ) as [(host, port)],
    ):
        yield ollama.AsyncClient(host=f"http://{host}:{port}", timeout=20)


# ---- the official client reads the bodies


async def test_the_client_lists_local_and_relayed_models(api: Api, client: ollama.AsyncClient) -> None:
    chat, embed, remote = (await client.list()).models
    assert (chat.model, embed.model, remote.model) == ("tiny-chat", "tiny-embed", "house/model")
    assert (chat.size, chat.digest) == (
        api.chat.stat().st_size,
        hashlib.sha256(api.chat.read_bytes()).hexdigest(),
    )
    assert chat.modified_at == datetime.fromtimestamp(CHANGED_S, UTC)
    assert (chat.details.format, chat.details.family, chat.details.families) == ("gguf", "llama", ["llama"])
    assert (chat.details.parameter_size, chat.details.quantization_level) == ("1.7M", "F16")
    assert (embed.details.family, remote.details.format, remote.size) == ("bert", "remote", 0)


async def test_the_client_shows_a_local_model(api: Api, client: ollama.AsyncClient) -> None:
    shown = await client.show("tiny-chat:latest")
    assert (shown.template, shown.capabilities, shown.license) == (TEMPLATE, ["completion", "tools"], None)
    assert dict(line.split() for line in shown.parameters.splitlines()) == {
        "num_ctx": "4096",
        "num_batch": "256",
        "num_gpu": "99",
        "num_thread": "6",
        "rope_frequency_base": "10000",
    }
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.modelinfo["general.parameter_count"] == 1_742_976
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert "tokenizer.chat_template" not in shown.modelinfo
    assert shown.details.parameter_size == "1.7M"
    assert shown.modified_at == datetime.fromtimestamp(CHANGED_S, UTC)
    assert shown.modelfile.splitlines()[1] == "FROM tiny-chat.gguf"
    assert str(api.chat.parent) not in shown.modelfile
    assert "PARAMETER num_ctx 4096" in shown.modelfile.splitlines()
    assert (await client.show("house")).details.format == "remote"


async def test_the_client_sees_what_is_loaded(api: Api, client: ollama.AsyncClient) -> None:
    assert [model.model for model in (await client.ps()).models] == ["house/model"]
    assert (await client.generate("tiny-chat", "", keep_alive="10m")).done_reason == "load"
    local, remote = (await client.ps()).models
    assert (local.model, local.name, remote.model) == ("tiny-chat", "tiny-chat", "house/model")
    assert (local.size, local.size_vram, local.context_length) == (GIB, 0, 4096)
    assert local.expires_at == datetime.fromtimestamp(api.clock.now_s() + 600, UTC)
    assert local.digest == hashlib.sha256(api.chat.read_bytes()).hexdigest()
    assert local.details.quantization_level == "F16"
    assert (await client.generate("tiny-chat", "", keep_alive=0)).done_reason == "unload"
    assert [model.model for model in (await client.ps()).models] == ["house/model"]


async def test_the_client_is_refused_in_ollamas_words(client: ollama.AsyncClient) -> None:
    for call in (
        client.show("nobody"),
        client.generate("nobody", ""),
        client.chat("nobody", USER),
        client.embed("nobody", "x"),
        client.generate("nobody", "", keep_alive=0),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            await call
        assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")


# ---- lists


async def test_tags_keep_the_compatible_fields_for_local_models(api: Api) -> None:
    chat, embed, remote = (await api.result("tags"))["models"]
    assert (chat["upstream"], chat["aliases"], chat["capabilities"], embed["capabilities"]) == (
        "tiny-chat",
        [],
        ["completion", "tools"],
        ["embedding"],
    )
    assert (chat["details"]["context_length"], chat["details"]["embedding_length"]) == (8192, 384)
    assert "remote_host" not in chat
    assert (remote["remote_model"], remote["upstream"]) == ("maker/Llama-9b", "maker/Llama-9b")


@pytest.mark.parametrize("has_library", [True, False])
async def test_a_model_with_an_unreadable_file_is_listed(api: Api, has_library: bool) -> None:
    api.chat.write_bytes(b"damaged" + bytes(40))
    if not has_library:
        api.handlers = OllamaHandlers(api.router, clock=api.clock, manager=api.manager)  # type: ignore[arg-type]
    chat = (await api.result("tags"))["models"][0]
    assert (chat["name"], chat["size"], chat["details"]["quantization_level"], chat["capabilities"]) == (
        "tiny-chat",
        123,
        "unknown",
        ["completion"],
    )
    assert len(bytes.fromhex(chat["digest"])) == 32
    api.load("tiny-chat", {"memory_bytes": 5})
    assert (await api.result("ps"))["models"][0]["size"] == 5
    if has_library:
        with pytest.raises(Unavailable, match="not with b'GGUF'"):
            await api.result("show", {"model": "tiny-chat"})
    else:
        assert (await api.result("show", {"model": "tiny-chat", "verbose": True}))["model_info"] == {}


async def test_a_digest_not_computed_yet_has_a_substitute(api: Api, tmp_path: Path) -> None:
    async with Tasks() as tasks:
        library = ModelLibrary(lambda: api.manager.catalogue.models, tasks=tasks, digest_wait_s=0.0)
        api.handlers = OllamaHandlers(api.router, clock=api.clock, manager=api.manager, library=library)  # type: ignore[arg-type]
        first = (await api.result("tags"))["models"][0]
        assert len(bytes.fromhex(first["digest"])) == 32
        assert first["details"]["family"] == "llama"


async def test_show_returns_vocabularies_only_when_verbose(api: Api) -> None:
    info = (await api.result("show", {"name": "tiny-chat", "verbose": True}))["model_info"]
    assert len(info["tokenizer.ggml.tokens"]) == info["llama.vocab_size"]
    assert info["tokenizer.ggml.merges"]
    info = (await api.result("show", {"name": "tiny-chat", "verbose": False}))["model_info"]
    assert (info["tokenizer.ggml.tokens"], info["tokenizer.ggml.merges"]) == (None, None)


async def test_a_license_is_shown(api: Api, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "licensed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    api.manager.put(path)
    api.router.refresh()
    shown = await api.result("show", {"model": "licensed"})
    assert (shown["license"], shown["template"], shown["parameters"].splitlines()[0].split()) == (
        "apache-2.0",
        "",
        ["num_ctx", "4096"],
    )
    assert "TEMPLATE" not in shown["modelfile"]


# ---- what is loaded


async def test_ps_sums_runners_and_sorts_by_expiry(api: Api) -> None:
    now_s = api.clock.now_s()
    api.load(
        "tiny-chat",
        {"devices": ((0, 2 * GIB), (-1, GIB)), "memory_bytes": GIB, "expires_at_s": now_s + 60},
        {"devices": ((1, GIB),), "expires_at_s": now_s + 90},
        {"status": "stopping", "memory_bytes": 9 * GIB},
    )
    api.load("tiny-embed", {"memory_bytes": 7, "expires_at_s": None}, slots=1)
    embed, chat, _ = (await api.result("ps"))["models"]
    assert (chat["name"], chat["size"], chat["size_vram"], chat["context_length"]) == (
        "tiny-chat",
        4 * GIB,
        3 * GIB,
        4096,
    )
    assert chat["expires_at"] == "2027-01-15T08:01:30.000000Z"
    assert (embed["name"], embed["size"], embed["size_vram"], embed["context_length"]) == (
        "tiny-embed",
        7,
        0,
        512,
    )
    assert embed["expires_at"] > "2300"  # more than 20 years: `ollama ps` says Forever


@pytest.mark.parametrize(
    ("status", "is_listed"),
    [("starting", True), ("loading", True), ("ready", True), ("stopping", False), ("crashed", False)],
)
async def test_ps_lists_what_holds_memory(api: Api, status: str, is_listed: bool) -> None:
    api.load("tiny-chat", {"status": status}, status=status)
    names = [model["name"] for model in (await api.result("ps"))["models"]]
    assert names == (["tiny-chat", "house/model"] if is_listed else ["house/model"])
    if is_listed:
        assert (await api.result("ps"))["models"][0][
            "size"
        ] == 3 * GIB  # nothing is measured yet: what it is reckoned to take


async def test_an_endless_expiry_can_be_rendered(api: Api) -> None:
    api.load("tiny-chat", {"expires_at_s": 1e300})
    assert (await api.result("ps"))["models"][0]["expires_at"] > "2300"


# ---- loading and unloading


@pytest.mark.parametrize(
    ("handler", "ask", "stay_s"),
    [
        ("generate", {}, None),
        ("generate", {"prompt": "", "keep_alive": "10m"}, 600.0),
        ("generate", {"keep_alive": -1}, -1.0),
        ("chat", {"messages": [], "keep_alive": "-1m"}, -1.0),
        ("chat", {"keep_alive": 1.5}, 1.5),
    ],
)
async def test_a_request_without_a_prompt_loads(
    api: Api, handler: str, ask: dict[str, Any], stay_s: float | None
) -> None:
    out = await api.result(handler, {**ask, "model": "tiny-chat"})
    assert api.manager.asked == [("load", "tiny-chat", stay_s)]
    assert (out["model"], out["done"], out["done_reason"]) == ("tiny-chat", True, "load")
    assert (out["load_duration"], out["total_duration"]) == (LOAD_S * 1e9, LOAD_S * 1e9)
    again = await api.result(handler, {**ask, "model": "tiny-chat:latest", "stream": False})
    assert (again["done_reason"], "load_duration" in again) == ("load", False)
    assert len(api.manager.asked) == 2  # a new keep_alive must reach a loaded model too
    assert not api.backend.asked


@pytest.mark.parametrize(
    ("handler", "ask"), [("generate", {"keep_alive": 0}), ("chat", {"messages": [], "keep_alive": "0s"})]
)
async def test_keep_alive_zero_without_a_prompt_unloads(api: Api, handler: str, ask: dict[str, Any]) -> None:
    out = await api.result(handler, {**ask, "model": "tiny-chat", "stream": False})
    assert api.manager.asked == [("eject", "tiny-chat")]
    assert (out["done_reason"], "load_duration" in out) == ("unload", False)


async def test_nothing_to_embed_loads_too(api: Api) -> None:
    assert await api.result("embed", {"model": "tiny-embed", "input": [], "keep_alive": 60}) == {
        "model": "tiny-embed",
        "embeddings": [],
        "total_duration": LOAD_S * 1e9,
        "load_duration": LOAD_S * 1e9,
    }
    assert await api.result("embeddings", {"model": "tiny-embed", "keep_alive": 0}) == {"embedding": []}
    assert api.manager.asked == [("load", "tiny-embed", 60.0), ("eject", "tiny-embed")]


async def test_a_relayed_model_is_neither_loaded_nor_unloaded(api: Api) -> None:
    for ask, reason in (({}, "load"), ({"keep_alive": 0}, "unload")):
        assert (await api.result("generate", {"model": "house", **ask}))["done_reason"] == reason
    assert not api.manager.asked


async def test_a_load_that_fails_says_why(api: Api) -> None:
    api.manager.refuses = Unavailable("The model 'tiny-chat' failed 3 times.", retry_after_s=5)
    with pytest.raises(Unavailable, match="failed 3 times"):
        await api.result("generate", {"model": "tiny-chat"})


@pytest.mark.parametrize("ask", [{}, {"keep_alive": 0}])
async def test_a_model_that_left_the_table_meanwhile_is_not_found(api: Api, ask: dict[str, Any]) -> None:
    api.router.cards()  # the router knows it still
    del api.manager.views["tiny-chat"]
    with pytest.raises(NoSuchModel) as caught:
        await api.result("generate", {"model": "tiny-chat", **ask})
    assert caught.value.message == "model 'tiny-chat' not found"


async def test_an_invalid_keep_alive_loads_nothing(api: Api) -> None:
    for handler, ask in (
        ("generate", {}),
        ("chat", {}),
        ("embed", {"input": []}),
        ("embed", {"input": "x"}),
        ("chat", {"messages": USER}),
    ):
        with pytest.raises(Invalid, match="keep_alive"):
            await api.result(handler, {"model": "tiny-chat", "keep_alive": "soon", **ask})
    assert not api.manager.asked
    assert not api.backend.asked


# ---- the options of a request


@pytest.mark.parametrize(
    ("handler", "ask"),
    [
        ("chat", {"messages": USER}),
        ("generate", {"prompt": "hi"}),
        ("generate", {"prompt": "hi", "raw": True}),
        ("embed", {"input": "hi"}),
        ("embeddings", {"prompt": "hi"}),
    ],
)
@pytest.mark.parametrize(
    ("keep_alive", "stay_s"),
    [(None, None), (0, 0.0), ("0", 0.0), ("5m", 300.0), (30, 30.0), (-1, -1.0), ("-1s", -1.0)],
)
async def test_keep_alive_is_sent_with_a_request(
    api: Api,
    handler: str,
    ask: dict[str, Any],
    keep_alive: Any,
    stay_s: float | None,
) -> None:
    more = {} if keep_alive is None else {"keep_alive": keep_alive}
    await api.result(handler, {"model": "tiny-chat", "stream": False, **ask, **more})
    [request] = api.backend.asked
    assert request.options.keep_alive_s == stay_s
    assert "keep_alive" not in request.body
    assert not api.manager.asked  # the manager hears of it by the request


async def test_keep_alive_is_sent_with_a_stream(api: Api, client: ollama.AsyncClient) -> None:
    parts = [
        part
        async for part in await client.chat(
            "tiny-chat", USER, stream=True, keep_alive="7m", options={"num_ctx": 2048}
        )
    ]
    assert parts[-1].done
    [request] = api.backend.asked
    assert (request.options.keep_alive_s, request.options.context_tokens, request.stream) == (
        420.0,
        2048,
        True,
    )
