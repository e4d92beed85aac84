"""Stand-ins for vLLM and SGLang whose adapters can be loaded and unloaded, and are lost when they are restarted.

Replies as the routes of vLLM 0.32 and SGLang give them: vLLM's success is plain text, and without
VLLM_ALLOW_RUNTIME_LORA_UPDATING its addresses do not exist; SGLang's have no /v1 and reply with a flag. "… 2024": vLLM's
flat errors; an SGLang that does not list its adapters. To the bare name of an adapter SGLang lets its base model answer;
a name `base:adapter` that it does not have is refused.
"""

import asyncio
from typing import Any

from aiohttp import web

from tests.fakes.engine_server import EngineServer

CREATED_S = 1_700_000_000


class LoraEngine(EngineServer):
    """One server.

    adapters   what it has, by name → path
    commands   what it was asked to do: load, unload
    refuses    (status, message) of every command; None = it carries them out
    load_s     how long a command takes
    missing    requests for an adapter that it did not have
    """

    def __init__(self, kind: str, *, can_load: bool = True, **more: Any) -> None:
        super().__init__(kind.split()[0], **more)
        self.is_old = kind.endswith("2024")
        self.can_load = can_load
        self.adapters: dict[str, str] = {}
        self.commands: list[str] = []
        self.refuses: tuple[int, str] | None = None
        self.load_s = 0.0
        self.missing = 0
        self.base = self.models[0]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        prefix = "/v1" if self.kind == "vllm" else ""
        if request.path in {f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter"} and self.can_load:
            body = await request.json()
            verb = request.path.split("/")[-1].split("_")[0]
            await asyncio.sleep(self.load_s)
            self.commands.append(verb)
            carry_out = self._vllm if self.kind == "vllm" else self._sglang
            return carry_out(verb, body["lora_name"], body.get("lora_path", ""))
        if "lora_adapter" in request.path or request.path == "/lora-adapters":
            return web.json_response({"detail": "Not Found"}, status=404)
        return await super()._handle(request)

    def _vllm(self, verb: str, name: str, path: str) -> web.Response:
        if self.refuses is not None:
            return self._error(*self.refuses)
        if verb == "load":
            if name in self.adapters:
                return self._error(
                    400,
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                    "set 'load_inplace' to True.",
                )
            self.adapters[name] = path
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")
        if name not in self.adapters:
            return self._error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    def _error(self, status: int, message: str) -> web.Response:
        types = {404: "NotFoundError", 400: "InvalidUserInput"}
        error = {
            "message": message,
            "type": types.get(status, "InternalServerError"),
            "param": None,
            "code": status,
        }
        is_flat = self.is_old or self.kind == "sglang"
        return web.json_response({"object": "error", **error} if is_flat else {"error": error}, status=status)

    def _sglang(self, verb: str, name: str, path: str) -> web.Response:
        problem = self.refuses[1] if self.refuses is not None else ""
        if not problem and verb == "load" and name in self.adapters:
            problem = f"LoRA adapter with name {name} is already loaded."
        if not problem and verb == "unload" and name not in self.adapters:
            problem = f"LoRA adapter with name {name} does not exist."
        if not problem and verb == "load":
            self.adapters[name] = path
        elif not problem:
            del self.adapters[name]
        return web.json_response(
            {"success": not problem, "error_message": problem or None, "loaded_adapters": self.adapters},
            status=400 if problem else 200,
        )

    async def _models(self) -> web.Response:
        rows = [self._row(self.base, self.base, None, self.context)]
        if not (self.kind == "sglang" and self.is_old):
            rows += [self._row(name, path, self.base, None) for name, path in self.adapters.items()]
        return web.json_response({"object": "list", "data": rows})

    def _row(self, name: str, root: str, parent: str | None, context: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": CREATED_S,
            "owned_by": self.kind,
            "root": root,
            "parent": parent,
            "max_model_len": context,
        }

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        model = body.get("model", "")
        adapter = self._adapter_of(model)
        if self.kind == "vllm" and model not in {self.base, *self.adapters}:
            self.missing += 1
            return self._error(404, f"The model `{model}` does not exist.")
        if adapter and adapter not in self.adapters:
            self.missing += 1
            return self._error(
                400,
                f"The following requested LoRA adapters are not loaded: {{'{adapter}'}}\n"
                f"Loaded adapters: {list(self.adapters)}.",
            )
        await asyncio.sleep(self.token_s)
        text = f"The adapter {adapter}." if adapter else "The base model."
        return web.json_response(
            {
                "id": "c1",
                "created": CREATED_S,
                "model": model,
                "object": "chat.completion",
                "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                ],
            }
        )

    def _adapter_of(self, model: str) -> str:
        """The adapter that a request names; "" = its base model answers."""
        if self.kind == "sglang":
            return model.split(":", 1)[1] if ":" in model else ""
        return model if model in self.adapters else ""
