"""Stand-ins for engines that cannot be had here, or not in every generation: SGLang and servers of vLLM.

Their pages are built from their published ones: health, models with adapters, information, metrics in each
spelling, error bodies. The answers themselves are the stand-in's (engine_server.py), which can also be made
to fail.
"""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.fakes.engine_server import EngineServer


@dataclass(frozen=True)
class Generation:
    """What differs between generations.

    metrics      the page, with {running} and {waiting}; "" = switched off (404)
    information  address of its information page; owner: `owned_by` in the list of models
    error        "nested" {error: {…}} or "flat" {object: "error", …}; too_long: its sentence, with {prompt}
                 and {context}
    numbers      whether that sentence has the prompt's number in it
    adapter      what `model` must be for its adapter `sql-lora` to answer; "" = it lists none. Else the base
                 model answers, silently
    """

    name: str
    kind: str
    metrics: str
    too_long: str
    owner: str | None
    error: str = "nested"
    information: str = ""
    health_body: str = ""
    numbers: bool = True
    adapter: str = ""


HISTOGRAM = """# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{{le="0.3",model_name="tiny"}} 7.0
vllm:e2e_request_latency_seconds_sum{{model_name="tiny"}} 1.5
"""
VLLM_2024 = (
    """# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="tiny"}} {running}.0
# TYPE vllm:num_requests_swapped gauge
vllm:num_requests_swapped{{model_name="tiny"}} 0.0
vllm:num_requests_waiting{{model_name="tiny"}} {waiting}.0
vllm:gpu_cache_usage_perc{{model_name="tiny"}} 0.25
"""
    + HISTOGRAM
)
VLLM_2026 = (
    """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} {running}.0
vllm:num_requests_running{{engine="1",model_name="tiny"}} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} {waiting}.0
vllm:num_requests_waiting{{engine="1",model_name="tiny"}} 0.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="tiny",reason="capacity"}} 40.0
vllm:kv_cache_usage_perc{{engine="0",model_name="tiny"}} 0.25
vllm:lora_requests_info{{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}} 1.7e+09
"""
    + HISTOGRAM
)
SGLANG = """# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} {running}.0
sglang:num_queue_reqs{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} {waiting}.0
sglang:num_grammar_queue_reqs{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} 30.0
sglang:token_usage{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} 0.28
sglang:gen_throughput{{engine_type="unified",model_name="tiny",pp_rank="0",tp_rank="0"}} 86.5
"""
VLLM_REQUESTED = (
    "This model's maximum context length is {context} tokens. However, you requested {prompt} tokens "
    "({prompt} in the messages, 0 in the completion). Please reduce the length of the messages or "
    "completion."
)
VLLM_INPUT = (
    "This model's maximum context length is {context} tokens. However, your request has {prompt} input "
    "tokens. Please reduce the length of the input."
)
VLLM_AT_LEAST = (
    "This model's maximum context length is {context} tokens. However, you requested 0 output tokens and "
    "your prompt contains at least {context}1 input tokens, for a total of at least {context}1 tokens. "
    "Please reduce the length of the input prompt."
)
SGLANG_INPUT = "The input ({prompt} tokens) is longer than the model's context length ({context} tokens)."
SGLANG_REQUESTED = (
    "Requested token count exceeds the model's maximum context length of {context} tokens. You requested a "
    "total of {prompt} tokens: {prompt} tokens from the input messages and 0 tokens for the completion."
)
VLLM_ENGINE = (
    "The decoder prompt (length {prompt}) is longer than the maximum model length of {context}. Make sure "
    "that `max_model_len` is no smaller than the number of text tokens."
)
SGLANG_SCHEDULER = (
    "Input length ({prompt} tokens) exceeds the maximum allowed length ({context} tokens). Use a shorter "
    "input or enable --allow-auto-truncate."
)

GENERATIONS = [
    Generation("vllm 2024", "vllm", VLLM_2024, VLLM_REQUESTED, "vllm", error="flat", adapter="sql-lora"),
    Generation("vllm 2025", "vllm", VLLM_2026, VLLM_INPUT, "vllm", adapter="sql-lora"),
    Generation("vllm 2026", "vllm", VLLM_2026, VLLM_AT_LEAST, "vllm", numbers=False, adapter="sql-lora"),
    Generation(
        "vllm behind an exporter",
        "vllm",
        VLLM_2026.replace("vllm:", "vllm_"),
        VLLM_INPUT,
        None,
        adapter="sql-lora",
    ),
    Generation("vllm whose engine refuses", "vllm", VLLM_2026, VLLM_ENGINE, "vllm", adapter="sql-lora"),
    Generation(
        "sglang 2024", "sglang", SGLANG, SGLANG_INPUT, "sglang", error="flat", information="/get_model_info"
    ),
    Generation(
        "sglang 2026",
        "sglang",
        SGLANG,
        SGLANG_REQUESTED,
        "sglang",
        error="flat",
        information="/model_info",
        adapter="tiny:sql-lora",
    ),
    Generation(
        "sglang whose scheduler refuses",
        "sglang",
        SGLANG,
        SGLANG_SCHEDULER,
        "sglang",
        error="flat",
        information="/model_info",
    ),
    Generation(
        "sglang without metrics",
        "sglang",
        "",
        SGLANG_INPUT,
        None,
        error="flat",
        information="/get_model_info",
    ),
]
PROMPT = 9000


class EngineGeneration(EngineServer):
    """One server of a generation."""

    def __init__(self, generation: Generation, **how: Any) -> None:
        super().__init__(generation.kind, **how)
        self.generation = generation
        self.queued = 0  # requests of others that wait inside

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.generation.information and request.path == self.generation.information:
            return web.json_response({"model_path": "tiny", "tokenizer_path": "tiny", "is_generation": True})
        return await super()._handle(request)

    async def _information(self) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    async def _adapters(self) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    async def _metrics(self) -> web.Response:
        if not self.generation.metrics:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.Response(
            text=self.generation.metrics.format(
                running=self.running + self.others, waiting=self.waiting + self.queued
            )
        )

    async def _models(self) -> web.Response:
        rows: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": 1700000000,
                "root": name,
                "parent": None,
                "max_model_len": self.context,
                "permission": [],
            }
            for name in self.models
        ]
        if self.generation.adapter:  # the context of an adapter is not listed
            rows.append(
                {
                    "id": "sql-lora",
                    "object": "model",
                    "created": 1700000000,
                    "root": "/adapters/sql",
                    "parent": self.models[0],
                    "max_model_len": None,
                    "permission": [],
                }
            )
        owner = {"owned_by": self.generation.owner} if self.generation.owner else {}
        return web.json_response({"object": "list", "data": [row | owner for row in rows]})

    def _too_long(self) -> web.Response:
        message = self.generation.too_long.format(context=self.context, prompt=PROMPT)
        error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
        return web.json_response(
            {"object": "error", **error} if self.generation.error == "flat" else {"error": error}, status=400
        )
