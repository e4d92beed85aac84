"""Novita's OpenAI-compatible API: what it answers is the demo engine's, what it counts is in /_truth."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.base.money import round_up, shorten, to_dollars
from appliance.engines.backends.demo_reply import render_embeddings
from appliance.simulate.answers import TwinAnswer, TwinRefusal, TwinRequest, TwinRoute, is_simulated_key
from appliance.simulate.faults import Faults
from appliance.simulate.rented_engines import SimulatedEngine, list_events, stream_events
from appliance.simulate.twin_clock import TwinClock

KEY = "sk_novita_simulated"
BASES = ("/openai/v1", "/v3/openai")
FAULT_AFTER = 2  # events of a stream
MAX_RECORDS = 1000
# model → micro-dollars per 1,000,000 tokens of input and of output; invented
PRICES: dict[str, tuple[int, int]] = {
    "meta-llama/llama-3.2-3b-instruct": (30_000, 50_000),
    "meta-llama/llama-3.1-8b-instruct": (20_000, 50_000),
    "qwen/qwen3-32b": (100_000, 450_000),
    "deepseek/deepseek-v3.1": (270_000, 1_000_000),
    "baai/bge-m3": (10_000, 10_000),
}
CODES = {400: "invalid_request", 401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


class NovitaService:
    """The stand-in for Novita.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
    """

    name = "novita"
    calls: tuple[str, ...] = ()

    def __init__(self, clock: TwinClock, faults: Faults) -> None:
        self._clock = clock
        self._faults = faults
        self._engine = SimulatedEngine("demo", key="", clock=clock)
        self._totals: dict[str, dict[str, int]] = {}
        self._records: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDS)
        self._priced = 0  # micro-dollars per 1,000,000 tokens × tokens

    def routes(self) -> list[TwinRoute]:
        """Return its addresses, at the present base and at the old one."""
        rows = [
            ("models", "GET", "/models", self.models),
            ("chat", "POST", "/chat/completions", self.chat),
            ("completions", "POST", "/completions", self.complete),
            ("embeddings", "POST", "/embeddings", self.embed),
        ]
        return [
            TwinRoute(name, method, f"{base}{path}", act)
            for base in BASES
            for name, method, path, act in rows
        ]

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse a key that does not say that it is simulated."""
        if not is_simulated_key(headers.get("Authorization", ""), prefix="Bearer "):
            text = f"invalid api key (simulated: it has the word `simulated`, as {KEY!r})"
            raise TwinRefusal(401, self.error_body(401, "invalid_api_key", text))

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in OpenAI's form."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": text, "type": kind, "code": CODES.get(status, code), "param": None}}

    def url(self, origin: str) -> str:
        """Return the address to configure."""
        return f"{origin}{BASES[0]}"

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it."""
        return {"NOVITA_OPENAI_ENDPOINTS": self.url(origin), "NOVITA_API_KEY": KEY}

    def settle(self) -> None:
        """Do nothing: nothing happens here by itself."""

    def truth(self) -> dict[str, Any]:
        """Return what was answered and what it cost; the last requests one by one."""
        cost_musd = round_up(self._priced)
        return {"cost_musd": cost_musd, "models": self._totals, "requests": list(self._records)}

    # ---- answering

    async def models(self, request: TwinRequest) -> TwinAnswer:
        """Answer the models with their prices."""
        rows = [
            {
                "id": name,
                "object": "model",
                "created": int(self._clock.now_s()),
                "owned_by": "simulated",
                "input_token_price_per_m": to_dollars(prices[0]),
                "output_token_price_per_m": to_dollars(prices[1]),
            }
            for name, prices in PRICES.items()
        ]
        return TwinAnswer({"object": "list", "data": rows})

    async def chat(self, request: TwinRequest) -> TwinAnswer:
        """Answer a chat."""
        return self._completion(request, is_chat=True)

    async def complete(self, request: TwinRequest) -> TwinAnswer:
        """Answer a completion."""
        return self._completion(request, is_chat=False)

    async def embed(self, request: TwinRequest) -> TwinAnswer:
        """Answer embeddings."""
        model = self._model(request.body)
        try:
            reply = render_embeddings(request.body, model)
        except Invalid as exc:
            raise self._invalid(str(exc)) from None
        self._count(model, request.route, reply["usage"])
        return TwinAnswer(reply)

    def _completion(self, request: TwinRequest, *, is_chat: bool) -> TwinAnswer:
        model = self._model(request.body)
        try:
            reply, part = self._engine.reply(request.body, is_chat=is_chat)
        except Invalid as exc:
            raise self._invalid(str(exc)) from None
        if part.error_status:
            text = f"answers {part.error_status}, as the prompt asked (simulated)"
            raise TwinRefusal(part.error_status, self.error_body(part.error_status, "simulated", text))
        if not request.body.get("stream"):
            self._count(model, request.route, reply["usage"])
            return TwinAnswer(reply)
        kinds = ("cut_stream", "stall", "error_event")
        fault = self._faults.take(self.name, request.route, kinds)
        kind = (
            fault.kind
            if fault is not None
            else "cut_stream"
            if part.is_cut
            else "stall"
            if part.is_stalled
            else ""
        )
        events = list_events(request.body, reply)
        if kind == "error_event":
            error = self.error_body(500, "server_error", "the engine died (simulated)")
            events = [*events[:FAULT_AFTER], b"data: " + jsons.dumps(error) + b"\n\n"]

        async def stream(raw: web.Request) -> web.StreamResponse:
            self._count(model, request.route, reply["usage"], broken=kind)
            return await stream_events(
                raw,
                events,
                cut_after=FAULT_AFTER if kind == "cut_stream" else None,
                stall_after=FAULT_AFTER if kind == "stall" else None,
            )

        return TwinAnswer(stream=stream)

    def _model(self, body: dict[str, Any]) -> str:
        model = body.get("model")
        if not isinstance(model, str):
            raise self._invalid("`model` must be a text")
        if model not in PRICES:
            text = f"model {shorten(model)} not found; the simulation has {', '.join(PRICES)}"
            raise TwinRefusal(404, self.error_body(404, "model_not_found", text))
        return model

    def _count(self, model: str, route: str, usage: dict[str, Any], *, broken: str = "") -> None:
        """Count an answer; one that is broken off is counted and charged as a whole one (assumed)."""
        prompt, completion = int(usage["prompt_tokens"]), int(usage.get("completion_tokens", 0))
        totals = self._totals.setdefault(model, {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0})
        totals["requests"] += 1
        totals["prompt_tokens"] += prompt
        totals["completion_tokens"] += completion
        prices = PRICES[model]
        self._priced += prompt * prices[0] + completion * prices[1]
        self._records.append(
            {
                "model": model,
                "route": route,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "broken": broken,
            }
        )

    def _invalid(self, text: str) -> TwinRefusal:
        return TwinRefusal(400, self.error_body(400, "invalid_request", f"simulated: {text}"))
