"""What the model table says about the requests for a model, applied to one request. Pure.

Only requests for models that have such settings come here; all others keep the client's own bytes.
"""

from collections.abc import Mapping
from typing import Any

from appliance.base import jsons
from appliance.engines.types import EngineRequest, NativeOptions, Operation
from appliance.models.table.sampling import RequestSettings

# Fields that mean the same: a request that has one of them has the others, too.
_SAME = (
    frozenset({"max_tokens", "max_completion_tokens", "n_predict"}),
    frozenset({"repeat_penalty", "repetition_penalty"}),
)
_SPELLINGS = {name: names for names in _SAME for name in names}
_CHAT_ONLY = {"response_format", "reasoning_effort", "reasoning_format", "chat_template_kwargs"}
_NATIVE = {"num_keep": "n_keep"}  # Ollama's name → llama-server's, where they differ
_SYSTEM_ROLES = {"system", "developer"}


def apply_settings(request: EngineRequest, settings: RequestSettings) -> None:
    """Change a request as the table says; a second time changes nothing more.

    1. an embedding                                 → nothing
    2. a field of `defaults` that it does not have  → set
    3. a field of `force`                           → set, and other spellings of it removed
    4. a chat without a system message              → gets the system prompt
    """
    if request.operation is Operation.EMBEDDING:  # 1
        return
    body = request.body
    given = {name for name, value in body.items() if value is not None} | _given_natively(request.native)
    changed = dict(body)
    for name, value in _of_operation(settings.defaults, request.operation):
        if given.isdisjoint(_SPELLINGS.get(name, {name})):
            changed[name] = value  # 2
    for name, value in _of_operation(settings.force, request.operation):
        for spelling in _SPELLINGS.get(name, ()):
            changed.pop(spelling, None)
        changed[name] = value  # 3
    if request.operation is Operation.CHAT:
        changed = with_system_prompt(changed, settings)  # 4
    if changed == body:
        return
    request.parsed = changed
    if request.raw is not None:
        request.raw = jsons.dumps(changed)


def with_system_prompt(body: dict[str, Any], settings: RequestSettings) -> dict[str, Any]:
    """Return a chat with the model's system prompt, unless it has a system message of its own."""
    messages = body.get("messages")
    if not settings.system_prompt or not isinstance(messages, list):
        return body
    if any(isinstance(one, dict) and one.get("role") in _SYSTEM_ROLES for one in messages):
        return body
    return {**body, "messages": [{"role": "system", "content": settings.system_prompt}, *messages]}


def _of_operation(fields: Mapping[str, Any], operation: Operation) -> list[tuple[str, Any]]:
    is_chat = operation is Operation.CHAT
    return [(name, value) for name, value in fields.items() if is_chat or name not in _CHAT_ONLY]


def _given_natively(native: NativeOptions | None) -> set[str]:
    """Return the fields that a client of Ollama's API has given in Ollama's own way."""
    if native is None:
        return set()
    names = {_NATIVE.get(name, name) for name in native.values}
    return names | ({"chat_template_kwargs", "reasoning_effort"} if native.think is not None else set())
