"""The protocol openinference: Open Inference v2 for bodies with `inputs`, prompts for others.

Source:
    https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from appliance.base.errors import Invalid
from appliance.market.proxy.body_forms import render_body, show_body
from appliance.market.proxy.exchange import Outbound, ProxyAnswer, ProxyCall
from appliance.market.proxy.fields import join_fields

MAX_MODEL_CHARACTERS: Final = 200
NOT_PARAMETERS: Final = ("model", "model_name", "prompt", "messages", "inputs", "id", "stream")
TEXT_INPUT: Final = "text_input"


async def speak_openinference(call: ProxyCall) -> ProxyAnswer:
    """Make a call (see Speak).

    1. `inputs`                                   → v2: `<target>/v2/models/<model>/infer`, as it is if the
                                                    address has /v2/ already
    2. `prompt` or `messages`, address with path  → as it is: the target has an API of language models
    3. `prompt` or `messages`, address without    → v2 with one text as input; the answer is mapped back

    Raises:
        Invalid: The body is none of these.
    """
    body = call.order.body
    if not isinstance(body, dict) or not any(name in body for name in ("inputs", "prompt", "messages")):
        raise Invalid(
            "`body` must be an object with `inputs`, `prompt` or `messages`.",
            param="body",
            code="invalid_value",
        )
    target, is_mapped = call.target, False
    if "inputs" in body:  # 1
        if "/v2/" not in target.path:
            target = replace(target, path=infer_path(target.path, body))
            body = {name: value for name, value in body.items() if name not in ("model", "model_name")}
    elif target.path in ("", "/"):  # 3
        target, is_mapped = replace(target, path=infer_path("", body)), True
        body = infer_body(body)
    data, headers = render_body(body, call.headers)
    answer = await call.sender.open(Outbound("POST", target, headers, data), call.policy)
    try:
        received = await answer.read()
    finally:
        answer.close()
    fields = show_body(received)
    if is_mapped and answer.status < 400:
        fields = to_completion(fields, str(call.order.body.get("model", "")))
    return ProxyAnswer(answer.status, join_fields(answer.headers), fields, len(received))


def infer_path(base: str, body: dict[str, Any]) -> str:
    """Return the address of a model's inference below a path.

    Raises:
        Invalid: The body names no model.
    """
    model = body.get("model") or body.get("model_name")
    if not isinstance(model, str) or len(model) > MAX_MODEL_CHARACTERS:
        raise Invalid(
            "`body.model` must name the model at the target.", param="body.model", code="invalid_value"
        )
    return f"{base.rstrip('/')}/v2/models/{quote(model, safe='')}/infer"


def infer_body(body: dict[str, Any]) -> dict[str, Any]:
    """Return the v2 request of a prompt: one text, and what the model is told as parameters.

    Messages become lines `role: text`, since v2 knows texts only.
    """
    prompt = body.get("prompt")
    if prompt is None:
        prompt = "\n".join(_line_of(message) for message in _list_of(body.get("messages")))
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise Invalid(
            "`body.prompt` must be a text, or a list of texts.", param="body.prompt", code="invalid_value"
        )
    told = {
        name: value
        for name, value in body.items()
        if name not in NOT_PARAMETERS and isinstance(value, str | int | float | bool)
    }
    wanted = {"inputs": [{"name": TEXT_INPUT, "datatype": "BYTES", "shape": [len(texts)], "data": texts}]}
    return wanted | ({"parameters": told} if told else {})


def to_completion(fields: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the answer of v2 as that of a language model: texts as choices, and all of it as `outputs`."""
    answer = fields.get("body")
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    if not isinstance(outputs, list):
        return fields
    texts = [
        text
        for output in outputs
        if isinstance(output, dict) and output.get("datatype") == "BYTES"
        for text in _flat(output.get("data"))
    ]
    choices = [{"index": number, "text": text, "finish_reason": None} for number, text in enumerate(texts)]
    named = answer.get("model_name") if isinstance(answer, dict) else None
    return {
        "body": {"object": "text_completion", "model": named or model, "choices": choices},
        "outputs": outputs,
    }


def _line_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise Invalid(
            "`body.messages` must be a list of `{role, content}` with texts.",
            param="body.messages",
            code="invalid_value",
        )
    return f"{message.get('role', 'user')}: {content}"


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) and value else [None]


def _flat(value: Any) -> list[str]:
    """Return the texts of a tensor's data, which may be nested."""
    if isinstance(value, list):
        return [text for one in value for text in _flat(one)]
    return [value] if isinstance(value, str) else []
