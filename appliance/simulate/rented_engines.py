"""The engine that answers on each instance that runs: the demo engine, behind loopback ports of its own.

It takes the key that vLLM and llama-server read from their environment, and serves the model that the
instance's command names. Its answers say that they are simulated.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Invalid, describe_os_error
from appliance.base.logs import get_logger
from appliance.engines.backends.demo_reply import ReplyHead, render_completion, render_embeddings
from appliance.engines.backends.demo_script import ScriptedReply, decide_reply, last_user_text
from appliance.engines.upstream.pacing import make_chunks
from appliance.simulate.fleet import RentedInstance, Stage

log = get_logger("simulate")
LOOPBACK = "127.0.0.1"
MARK = {"X-Simulated": "1"}
MAX_BODY_BYTES = 8 * 2**20
MAX_PORTS = 8
CLOSE_S = 0.2
KEY_VARIABLES = ("VLLM_API_KEY", "LLAMA_API_KEY", "API_KEY")
MODEL_OPTIONS = ("--served-model-name", "--alias", "--model", "-m", "-hf")
PIECE_CHARACTERS = 12
CONTEXT_TOKENS, SLOTS = 8192, 4  # of a simulated llama-server


def served_model(instance: RentedInstance) -> str:
    """Return the model's name that the instance's command asks for."""
    words = [*instance.args, *instance.onstart.split()]
    for option in MODEL_OPTIONS:
        for number, word in enumerate(words):
            if word.startswith(f"{option}="):
                return word.partition("=")[2].strip("'\"")
            if word == option and number + 1 < len(words):
                return words[number + 1].strip("'\"")
    return instance.environ.get("MODEL", "") or "demo"


class SimulatedEngine:
    """One engine; it answers OpenAI's API as the demo engine does.

    Args:
        model: Its model's name; it answers to every name.
        key: Required of callers; "" = none.
        clock: The time of its answers.
        is_llama: It has what llama-server has besides, and no embeddings.
    """

    def __init__(self, model: str, *, key: str, clock: Clock, is_llama: bool = False) -> None:
        self._is_llama = is_llama
        self._model = model
        self._key = key
        self._clock = clock
        self._count = 0

    def application(self) -> web.Application:
        """Return its addresses."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        for base in ("/v1", "/openai/v1"):
            app.router.add_get(f"{base}/models", self.models)
            app.router.add_post(f"{base}/chat/completions", self.chat)
            app.router.add_post(f"{base}/completions", self.completion)
            app.router.add_post(f"{base}/embeddings", self.embeddings)
        for path in ("/health", "/ping"):
            app.router.add_get(path, self.health)
        app.router.add_get("/version", self.version)
        if self._is_llama:
            app.router.add_get("/props", self.props)
        app.on_response_prepare.append(_mark)
        return app

    async def health(self, request: web.Request) -> web.Response:
        """Say that it is ready."""
        return _json(200, {"status": "ok", "simulated": True})

    async def props(self, request: web.Request) -> web.Response:
        """Say what llama-server says of itself."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        limits = {"default_generation_settings": {"n_ctx": CONTEXT_TOKENS}, "total_slots": SLOTS}
        return _json(200, {**limits, "model_path": self._model, "build_info": "simulated"})

    async def version(self, request: web.Request) -> web.Response:
        """Say what it is."""
        return _json(200, {"version": "0.0.0+simulated"})

    async def models(self, request: web.Request) -> web.Response:
        """List its model."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        row = {
            "id": self._model,
            "object": "model",
            "created": int(self._clock.now_s()),
            "owned_by": "simulated",
        }
        return _json(200, {"object": "list", "data": [row]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat."""
        return await self.complete(request, is_chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """Answer a completion."""
        return await self.complete(request, is_chat=False)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """Answer with the demo engine's embeddings."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        if self._is_llama:
            return _error(501, "this server does not support embeddings; start it with --embeddings")
        try:
            body = await read_body(request)
            return _json(200, render_embeddings(body, str(body.get("model") or self._model)))
        except ApplianceError as exc:
            return _error(400, str(exc))

    async def complete(self, request: web.Request, *, is_chat: bool) -> web.StreamResponse:
        """Answer as the demo engine does: an echo, or what the prompt provokes (docs/demo-engine.md)."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        try:
            body = await read_body(request)
            reply, part = self.reply(body, is_chat=is_chat)
        except ApplianceError as exc:
            return _error(400, str(exc))
        if part.delay_s:
            await asyncio.sleep(part.delay_s)
        if part.error_status:
            return _error(part.error_status, f"answers {part.error_status}, as the prompt asked")
        if not body.get("stream"):
            return _json(200, reply)
        return await stream_events(request, list_events(body, reply), cut_after=2 if part.is_cut else None)

    def reply(self, body: dict[str, Any], *, is_chat: bool) -> tuple[dict[str, Any], ScriptedReply]:
        """Return (the whole answer, how it is to be given).

        Raises:
            Invalid: The request is wrong.
        """
        try:
            return self._reply(body, is_chat=is_chat)
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
        ):  # of a field that nothing checks
            raise Invalid("A field of the request has a wrong type.") from None

    def _reply(self, body: dict[str, Any], *, is_chat: bool) -> tuple[dict[str, Any], ScriptedReply]:
        texts = [last_user_text(_messages(body))] if is_chat else _prompts(body)
        parts = [decide_reply(body, text, is_chat=is_chat) for text in texts]
        self._count += 1
        number = hashlib.sha256(f"{self._model}{self._count}{self._clock.now_s()}".encode()).hexdigest()[:16]
        head = ReplyHead(number, int(self._clock.now_s()), str(body.get("model") or self._model))
        reply = render_completion(body, texts, parts, head, is_chat=is_chat)
        return {**reply, "simulated": True}, parts[0]

    def _refuse(self, request: web.Request) -> web.Response | None:
        if self._key and request.headers.get("Authorization") != f"Bearer {self._key}":
            return _error(401, "the key is missing or wrong")
        return None


class RentedEngines:
    """The engines of all instances that run.

    Args:
        clock: The time of their answers.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runners: dict[tuple[int, int], web.AppRunner] = {}  # by (instance, when it began to run)
        self._turn = asyncio.Lock()

    async def follow(self, instances: Iterable[RentedInstance]) -> None:
        """Start the engines of those that run, stop the others."""
        async with self._turn:
            running = {(each.id, each.stage_ms): each for each in instances if each.stage is Stage.RUNNING}
            for run in [each for each in self._runners if each not in running]:
                await self._runners.pop(run).cleanup()
            for run, instance in running.items():
                if run not in self._runners:
                    try:
                        await self._start(run, instance)
                    except OSError as exc:  # no port, no file: tried again with the next look
                        log.error("engine_not_started", instance=run[0], reason=describe_os_error(exc))
                        await self._runners.pop(run).cleanup()

    async def _start(self, run: tuple[int, int], instance: RentedInstance) -> None:
        key = next((instance.environ[name] for name in KEY_VARIABLES if instance.environ.get(name)), "")
        is_llama = "llama.cpp" in instance.facts.get("image", "") or "llama-server" in instance.onstart
        engine = SimulatedEngine(served_model(instance), key=key, clock=self._clock, is_llama=is_llama)
        runner = web.AppRunner(engine.application(), access_log=None, shutdown_timeout=CLOSE_S)
        await runner.setup()
        self._runners[run] = runner
        instance.addresses = []
        for port in instance.ports[:MAX_PORTS]:
            await web.TCPSite(runner, LOOPBACK, 0).start()
            instance.addresses.append((port, runner.addresses[-1][1]))

    async def close(self) -> None:
        """Stop all."""
        async with self._turn:
            for runner in self._runners.values():
                await runner.cleanup()
            self._runners.clear()


async def read_body(request: web.Request) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        Invalid: It is none.
    """
    try:
        body = jsons.loads_utf8(await request.read())
    except jsons.InvalidJson as exc:
        raise Invalid(f"The body is not JSON: {exc}") from None
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    return body


def list_events(body: dict[str, Any], reply: dict[str, Any]) -> list[bytes]:
    """Return the events of a stream with the content of a whole answer."""
    options = body.get("stream_options")
    has_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    chunks = make_chunks(reply, size=PIECE_CHARACTERS, include_usage=has_usage)
    return [*(b"data: " + jsons.dumps(chunk) + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]


async def stream_events(
    request: web.Request, events: list[bytes], *, cut_after: int | None = None, stall_after: int | None = None
) -> web.StreamResponse:
    """Send events; break the connection off, or fall silent, after so many of them."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    try:
        await response.prepare(request)
        for number, event in enumerate(events):
            if number == cut_after and request.transport is not None:
                request.transport.abort()
                return response
            if number == stall_after:
                await asyncio.sleep(3600)
            await response.write(event)
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client has left
    return response


def _messages(body: dict[str, Any]) -> list[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Invalid("`messages` must be a list with at least one message.", param="messages")
    return messages


def _prompts(body: dict[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise Invalid("`prompt` must be a string, or a list of strings.", param="prompt")
    return list(prompts)


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(MARK)


def _json(status: int, value: Any) -> web.Response:
    return web.Response(status=status, body=jsons.dumps(value), content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json(status, {"error": {"message": f"simulated: {text}", "type": kind, "code": status}})
