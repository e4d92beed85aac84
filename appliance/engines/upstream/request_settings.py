"""What the model table says about the requests for a model, applied to one request. Pure.

Only requests for models that have such settings come here; all others keep the client's own bytes. At its own
addresses an engine has its own names for the fields (`settle`).
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

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
NO_OTHER_NAMES: Mapping[str, str] = MappingProxyType({})
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
    body, is_chat = request.body, request.operation is Operation.CHAT
    given = {name for name, value in body.items() if value is not None} | _given_natively(request.native)
    if request.native is not None:
        given -= request.native.assumed
    changed = _with_fields(body, given, settings, is_chat=is_chat)  # 2, 3
    if is_chat:
        changed = with_system_prompt(changed, settings)  # 4
    if changed == body:
        return
    request.parsed = changed
    if request.raw is not None:
        request.raw = jsons.dumps(changed)


def _with_fields(
    body: Mapping[str, Any],
    given: Collection[str],
    settings: RequestSettings,
    *,
    is_chat: bool,
    names: Mapping[str, str] = NO_OTHER_NAMES,
) -> dict[str, Any]:
    """Return a body with the fields of `defaults` and `force`.

    Args:
        body: As it was sent.
        given: The fields that it has.
        settings: What the table says.
        is_chat: Whether it gets the fields that only chats have.
        names: What its address calls a field, where it is another name.
    """
    changed = dict(body)
    for name, value in _fields_for(settings.defaults, is_chat=is_chat):
        own = names.get(name, name)
        if not (_SPELLINGS.get(name, {name}) | {own}) & set(given):
            changed[own] = value
    for name, value in _fields_for(settings.force, is_chat=is_chat):
        own = names.get(name, name)
        for spelling in _SPELLINGS.get(name, frozenset({name})):
            changed.pop(spelling, None)
        changed[own] = value
    return changed


def with_system_prompt(body: dict[str, Any], settings: RequestSettings) -> dict[str, Any]:
    """Return a chat with the model's system prompt, unless it has a system message of its own."""
    messages = body.get("messages")
    if not settings.system_prompt or not isinstance(messages, list):
        return body
    if any(isinstance(one, dict) and one.get("role") in _SYSTEM_ROLES for one in messages):
        return body
    return {**body, "messages": [{"role": "system", "content": settings.system_prompt}, *messages]}


def settles(path: str) -> bool:
    """Whether requests at an engine's own address generate text: the settings of a model apply to them.

    Args:
        path: In any spelling; its query is no part of it.
    """
    return _plain_path(path) in _SETTLERS


def settle(path: str, body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    """Return the body of a request at an engine's own address, changed as the table says.

    1. text that is completed, by its address's names            → fields
    2. a chat, or what has messages                              → fields, and the system prompt
    3. Responses and Messages, which name some fields otherwise  → fields, and the instructions
    4. SGLang's /generate, whose fields are in `sampling_params` → fields there, for each prompt

    Args:
        path: For which `settles` is true.
        body: As it was sent.
        settings: What the table says.
    """
    return _SETTLERS[_plain_path(path)](body, settings)


def _plain_path(path: str) -> str:
    """Return a path as engines may read it: decoded, with single slashes and none at its end."""
    return "/" + "/".join(filter(None, unquote(path).split("/")))


def _settle_completion(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    return _with_fields(body, _given(body), settings, is_chat=False)


def _settle_native(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    return _with_fields(body, _given(body), settings, is_chat=False, names={"max_tokens": "n_predict"})


def _settle_chat(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    changed = _with_fields(body, _given(body), settings, is_chat=True)
    return with_system_prompt(changed, settings)


def _settle_either(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    if "messages" in body:
        return _settle_chat(body, settings)
    return _settle_completion(body, settings) if "prompt" in body else dict(body)


def _settle_responses(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    names = {"max_tokens": "max_output_tokens"}
    changed = _with_fields(body, _given(body), settings, is_chat=True, names=names)
    return _with_instructions(changed, "instructions", settings)


def _settle_messages(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    changed = _with_fields(body, _given(body), settings, is_chat=True, names={"stop": "stop_sequences"})
    return _with_instructions(changed, "system", settings)


def _settle_generate(body: Mapping[str, Any], settings: RequestSettings) -> dict[str, Any]:
    if "text" not in body and "input_ids" not in body:  # vLLM's: all fields are at the top
        return _settle_completion(body, settings)
    sampling = body.get("sampling_params")
    many = sampling if isinstance(sampling, list) else [sampling]
    settled = [
        _with_fields(one, _given(one), settings, is_chat=False, names=_OF_SGLANG)
        for one in (one if isinstance(one, dict) else {} for one in many)
    ]
    return {**body, "sampling_params": settled if isinstance(sampling, list) else settled[0]}


def _with_instructions(body: dict[str, Any], name: str, settings: RequestSettings) -> dict[str, Any]:
    if not settings.system_prompt or body.get(name) is not None:
        return body
    return {**body, name: settings.system_prompt}


def _given(body: Mapping[str, Any]) -> set[str]:
    return {name for name, value in body.items() if value is not None}


_OF_SGLANG = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "repeat_penalty": "repetition_penalty",
}
# Addresses that generate text, by what they take. Source: the READMEs of llama.cpp, vLLM and SGLang.
_SETTLERS: dict[str, Callable[[Mapping[str, Any], RequestSettings], dict[str, Any]]] = {
    **dict.fromkeys(["/completion", "/completions", "/infill"], _settle_native),
    "/v1/completions": _settle_completion,
    **dict.fromkeys(["/chat/completions", "/v1/chat/completions", "/api/chat"], _settle_chat),
    **dict.fromkeys(["/responses", "/v1/responses"], _settle_responses),
    "/v1/messages": _settle_messages,
    "/invocations": _settle_either,
    "/generate": _settle_generate,
}


def _fields_for(fields: Mapping[str, Any], *, is_chat: bool) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in fields.items() if is_chat or name not in _CHAT_ONLY]


def _given_natively(native: NativeOptions | None) -> set[str]:
    """Return the fields that a client of Ollama's API has given in Ollama's own way."""
    if native is None:
        return set()
    names = {_NATIVE.get(name, name) for name in native.values}
    return names | ({"chat_template_kwargs", "reasoning_effort"} if native.think is not None else set())
