"""Recorded streams of engines, and odd ones, for the tests that cut and mutate them."""

from typing import Any

from appliance.base import jsons


def _event(value: Any, *, compact: bool = True) -> bytes:
    text = jsons.dumps(value) if compact else jsons.dumps(value).replace(b'":', b'": ').replace(b',"', b', "')
    return b"data: " + text + b"\n\n"


def _chunk(delta: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up/m"}
    return {**head, "choices": [choice], **more}


def _call(index: Any, call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
TEXTS = ["Hel", "lo", ' "ü"\n', "🎉", "\\", " [DONE]", ""]

VLLM = b"".join(
    [
        _event(_chunk({"role": "assistant", "content": ""})),
        *[_event(_chunk({"content": text})) for text in TEXTS],
        _event(_chunk({"content": ""}, "stop", stop_reason=None)),
        _event({**_chunk({}), "choices": [], "usage": USAGE}),
        DONE,
    ]
)
LLAMACPP = b"".join(
    [
        b": ping\n\ndata: null\n\n",
        *[
            _event(
                {
                    "choices": [{"finish_reason": None, "index": 0, "delta": {"content": text}}],
                    "created": 1 + number // 2,
                    "id": "chatcmpl-2",
                    "model": "m.gguf",
                    "system_fingerprint": "b1",
                    "object": "chat.completion.chunk",
                }
            )
            for number, text in enumerate(TEXTS)
        ],
        _event(_chunk({}, "stop", timings={"prompt_n": 3, "predicted_n": 4})),
        DONE,
    ]
)
SGLANG = b"".join(
    [
        _event(_chunk({"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None})),
        _event(_chunk({"role": None, "content": None, "reasoning_content": "hm", "tool_calls": None})),
        *[_event(_chunk({"content": text, "reasoning_content": None})) for text in TEXTS],
        _event(_chunk(_call(0, "c1", "f", ""))),
        _event(_chunk(_call(0, None, None, '{"x":'))),
        _event(_chunk(_call(0, None, None, "1}"))),
        _event(_chunk({"content": None}, "tool_calls", matched_stop=None)),
        DONE,
    ]
)
NOVITA = b"".join(
    [
        _event(_chunk({"role": "assistant", "content": ""}, usage=None), compact=False),
        b": keep-alive\n\n",
        *[_event(_chunk({"content": text}, content_filter_results={}), compact=False) for text in TEXTS],
        _event(_chunk({"content": ""}, "length"), compact=False),
        _event({**_chunk({}), "choices": [], "usage": USAGE}, compact=False),
        b"data:[DONE]\n\n",
    ]
)
PARALLEL = b"".join(
    [
        _event(_chunk({"content": "so"})),
        _event(_chunk(_call(0, "c1", "f", "{"))),
        _event(_chunk(_call(0, "c2", "g", '{"y":2}'))),
        _event(_chunk(_call(0, "c1", "f", "}"))),
        _event(_chunk({}, "tool_calls")),
    ]
)
ODD = b"\xef\xbb\xbf" + b"".join(
    [
        b'retry: 5\r\nid: 1\r\nevent: message\r\ndata: {"model":"m",\r\n',
        b'data: "choices":[{"delta":{"content":"Hi"}}]}\r\n\r\n',
        b'data:\r\rdata: {"type":"ping"}\r\r',
        b'data: {"model":"m","choices":[{"delta":{"content":[{"type":"text","text":"!"}]}}]}\n\n',
        b'data: {"model":"m","choices":[{"delta":{"refusal":"no"}}]}\n\n',
        b'data: {"model":"m","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"completion_tokens":4}}',
    ]
)
FAILED = b"".join(
    [
        _event(_chunk({"content": "Hel"})),
        _event(_chunk({"content": "lo"})),
        _event({"error": {"message": "boom", "code": 500}, "model": "m"}),
    ]
)
CUT = _event(_chunk({"content": "Hel"})) + _event(_chunk({"content": "lo"}))

WHOLE = {
    "vllm": VLLM,
    "llamacpp": LLAMACPP,
    "sglang": SGLANG,
    "novita": NOVITA,
    "parallel": PARALLEL,
    "odd": ODD,
}
BROKEN = {"failed": FAILED, "cut": CUT}
ALL = {**WHOLE, **BROKEN}
