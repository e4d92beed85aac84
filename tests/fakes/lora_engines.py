"""Stand-ins for vLLM and SGLang whose adapters can be loaded and unloaded, and who lose them when they are restarted.

Replies as vLLM 0.32's and SGLang's routes give them: vLLM's success is plain text, and without VLLM_ALLOW_RUNTIME_LORA_UPDATING its addresses
do not exist; SGLang's have no /v1 and answer with a flag. "… 2024": vLLM's flat errors; an SGLang that does not list its adapters. To the
bare name of an adapter SGLang lets its base model answer; a name `base:adapter` that it has not is refused.
"""

import asyncio
from typing import Any

from aiohttp import web

from tests.fakes.engine_server import EngineServer


class LoraEngine(EngineServer):
    """One server. `refuses`: (status, message) of every load and unload; `missing`: requests that asked for an adapter that it had not."""

    def __init__(self, kind: str, *, may_load: bool = True, **how: Any) -> None:
        super().__init__(kind.split()[0], **how)
        self.is_old, self.may_load = kind.endswith("2024"), may_load
        self.adapters: dict[str, str] = {}
        self.told: list[str] = []
        self.refuses: tuple[int, str] | None = None
        self.load_s = 0.0
        self.missing = 0
        self.base = self.models[0]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        prefix = "/v1" if self.kind == "vllm" else ""
        if request.path in {f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter"} and self.may_load:
            body = await request.json()
            verb = request.path.split("/")[-1].split("_")[0]
            await asyncio.sleep(self.load_s)
            self.told.append(verb)
            return (self._vllm if self.kind == "vllm" else self._sglang)(
                verb, body["lora_name"], body.get("lora_path", "")
            )
        if "lora_adapter" in request.path:
            return web.json_response({"detail": "Not Found"}, status=404)
        if request.path == "/lora-adapters":
            return web.json_response({"detail": "Not Found"}, status=404)
        return await super()._handle(request)

    def _vllm(self, verb: str, name: str, path: str) -> web.Response:
        if self.refuses is not None:
            return self._error(*self.refuses)
        if verb == "load":
            if name in self.adapters:
                return self._error(
                    400,
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.",
                )
            self.adapters[name] = path
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")
        if name not in self.adapters:
            return self._error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    def _error(self, status: int, message: str) -> web.Response:
        error = {
            "message": message,
            "type": {404: "NotFoundError", 400: "InvalidUserInput"}.get(status, "InternalServerError"),
            "param": None,
            "code": status,
        }
        return web.json_response(
            {"object": "error", **error} if self.is_old or self.kind == "sglang" else {"error": error},
            status=status,
        )

    def _sglang(self, verb: str, name: str, path: str) -> web.Response:
        problem = self.refuses[1] if self.refuses is not None else ""
        if not problem and verb == "load" and name in self.adapters:
            problem = f"LoRA adapter with name {name} is already loaded."
        if not problem and verb == "unload" and name not in self.adapters:
            problem = f"LoRA adapter with name {name} does not exist."
        if problem:
            return web.json_response(
                {"success": False, "error_message": problem, "loaded_adapters": self.adapters}, status=400
            )
        if verb == "load":
            self.adapters[name] = path
        else:
            del self.adapters[name]
        return web.json_response({"success": True, "error_message": None, "loaded_adapters": self.adapters})

    async def _models(self) -> web.Response:
        rows: list[dict[str, Any]] = [
            {
                "id": self.base,
                "object": "model",
                "created": 1700000000,
                "owned_by": self.kind,
                "root": self.base,
                "parent": None,
                "max_model_len": self.context,
            }
        ]
        if not (self.kind == "sglang" and self.is_old):
            rows += [
                {
                    "id": name,
                    "object": "model",
                    "created": 1700000000,
                    "owned_by": self.kind,
                    "root": path,
                    "parent": self.base,
                    "max_model_len": None,
                }
                for name, path in self.adapters.items()
            ]
        return web.json_response({"object": "list", "data": rows})

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        asked = body.get("model", "")
        adapter = (
            asked.split(":", 1)[1]
            if self.kind == "sglang" and ":" in asked
            else asked
            if asked in self.adapters and self.kind == "vllm"
            else ""
        )
        if self.kind == "vllm" and asked not in {self.base, *self.adapters}:
            self.missing += 1
            return self._error(404, f"The model `{asked}` does not exist.")
        if adapter and adapter not in self.adapters:
            self.missing += 1
            return self._error(
                400,
                f"The following requested LoRA adapters are not loaded: {{'{adapter}'}}\nLoaded adapters: {list(self.adapters)}.",
            )
        await asyncio.sleep(self.token_s)
        text = f"The adapter {adapter}." if adapter else "The base model."
        return web.json_response(
            {
                "id": "c1",
                "created": 1700000000,
                "model": asked,
                "object": "chat.completion",
                "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
            }
        )
