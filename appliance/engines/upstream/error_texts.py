"""What the sentences of engines' error responses mean: a table. Pure data; `refusal.py` decides by it.

Engines answer 500 to many faults of the caller. A row holds for all engines: a server's kind may be unknown,
and forks keep the words. Sentences that are not here are decided by their status alone.

Source: b11669 means seen with llama-server 0.7.0 (build 11669), and provoked there by
tests/journeys/test_caller_faults.py. vLLM 0.32 answers 4xx to every fault that was tried
(tests/journeys/test_vllm.py); its rows are of older generations. Those and the rest are of the projects'
sources and public reports.
"""

import re
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """Whose fault an error is."""

    CALLER = "caller"  # every server would say the same
    TOO_LONG = "too_long"  # a server with more context may answer
    NOT_STARTED_FOR_IT = "not_started_for_it"  # a server with other start options may answer
    FULL = "full"  # no capacity at this moment


@dataclass(frozen=True, slots=True)
class ErrorText:
    """One row.

    Attributes:
        engine: Whose sentence it is: llamacpp, vllm, sglang.
        generation: Builds or versions that say it.
        pattern: A regular expression that the beginning of the sentence matches; case does not count.
        verdict: What it means.
        param: The field of the request at fault; None = no single one.
        code: For the client; None = the kind's own.
    """

    engine: str
    generation: str
    pattern: str
    verdict: Verdict
    param: str | None = None
    code: str | None = None


_CALLER, _UNSUPPORTED = Verdict.CALLER, "not_supported"

ERROR_TEXTS: tuple[ErrorText, ...] = (
    # llama.cpp: 500 for what it cannot read
    ErrorText("llamacpp", "b11669", r"failed to parse tool call arguments as json", _CALLER, "messages"),
    ErrorText("llamacpp", "b5000 to b11669", r"failed to parse messages: ", _CALLER, "messages"),
    ErrorText("llamacpp", "b5000 to b11669", r"failed to parse tools: ", _CALLER, "tools"),
    ErrorText("llamacpp", "b11669", r"unknown reasoning format: ", _CALLER, "reasoning_format"),
    ErrorText("llamacpp", "b4000 to b11669", r"cannot use both json_schema and grammar", _CALLER, "grammar"),
    # llama.cpp: the model cannot do it
    ErrorText(
        "llamacpp",
        "b6000 to b11669",
        r"the current context does not support logits computation",
        _CALLER,
        "model",
        _UNSUPPORTED,
    ),
    ErrorText(
        "llamacpp",
        "b5300 to b11669",
        r"(image|audio|video) input is not supported",
        _CALLER,
        "messages",
        _UNSUPPORTED,
    ),
    ErrorText(
        "llamacpp",
        "b4600 to b11669",
        r"(tools|tool_choice) param requires --jinja",
        Verdict.NOT_STARTED_FOR_IT,
        "tools",
        _UNSUPPORTED,
    ),
    # llama.cpp: sizes
    ErrorText(
        "llamacpp",
        "b1500 to b11669",
        r"input (\(\d+ tokens\) )?is too large to process",
        Verdict.TOO_LONG,
        "input",
    ),
    # requests that share one cache (--kv-unified) fill it together
    ErrorText("llamacpp", "b6000 to b11669", r"context size has been exceeded", Verdict.FULL),
    # llama.cpp: the template refuses the messages; its own engine since b7700, minja before
    ErrorText(
        "llamacpp",
        "b7700 to b11669",
        r"(unable to generate parser for this template\. .*)?\s*-{4,}\s*while executing .*jinja exception: ",
        _CALLER,
        "messages",
    ),
    ErrorText(
        "llamacpp",
        "b4500 to b7700",
        r"[^\n]+ at row \d+, column \d+:\n.*\braise_exception\(",
        _CALLER,
        "messages",
    ),
    # llama.cpp: pictures and sounds that cannot be read
    ErrorText(
        "llamacpp",
        "b5300 to b11669",
        r"failed to (load|download) image|invalid (uri-encoded )?base64 value|failed to tokenize prompt",
        _CALLER,
        "messages",
    ),
    # llama.cpp: 400 today, 500 in older generations
    ErrorText(
        "llamacpp",
        "before b7000",
        r"'messages' is required|expected 'messages' to be|missing 'content'|expected 'content' to be"
        r"|all non-assistant messages must contain|unsupported content\[\]\.type"
        r"|assistant response prefill is incompatible|cannot have 2 or more assistant messages",
        _CALLER,
        "messages",
    ),
    ErrorText(
        "llamacpp",
        "before b7000",
        r"unsupported param: |invalid tool_choice: |response_format type must be |only one completion choice"
        r"|top_logprobs requires logprobs|logprobs is not supported with tools"
        r"|cannot use (custom grammar constraints with )?tools",
        _CALLER,
    ),
    ErrorText(
        "llamacpp",
        "before b7000",
        r"(\"json_schema\": )?json schema (conversion failed|error)|failed to parse grammar"
        r"|failed to initialize samplers: failed to parse grammar",
        _CALLER,
    ),
    # vLLM: 400 today; 500 in older generations, and behind its own proxies. Python's json says the first.
    ErrorText(
        "vllm",
        "0.6 to 0.25",
        r"(unterminated string starting at|expecting value|expecting ',' delimiter|expecting ':' delimiter"
        r"|expecting property name enclosed in double quotes|invalid control character at|extra data)"
        r": line \d+ column \d+ \(char \d+\)",
        _CALLER,
        "messages",
    ),
    ErrorText("vllm", "0.5 to 0.25", r"conversation roles must alternate", _CALLER, "messages"),
    ErrorText(
        "vllm", "0.6 to 0.25", r"at most \d+ (image|audio|video)\S* may be provided", _CALLER, "messages"
    ),
    ErrorText(
        "vllm",
        "0.5 to 0.25",
        r"(unknown model type: |\S+ is )not a multimodal model|the model does not support .{1,40} api",
        _CALLER,
        "model",
        _UNSUPPORTED,
    ),
    # vLLM and SGLang: pictures (Pillow), grammars (xgrammar)
    ErrorText(
        "vllm",
        "0.5 to 0.25",
        r"(internal server error: )?cannot identify image file|failed to load image|incorrect padding",
        _CALLER,
        "messages",
    ),
    ErrorText(
        "sglang",
        "0.3 to 0.5",
        r"(internal server error: )?(invalid grammar request|failed to (parse|compile) .{0,40}grammar)",
        _CALLER,
    ),
    ErrorText(
        "sglang",
        "0.4 to 0.5",
        r"(internal server error: )?this model does not appear to be an embedding model",
        _CALLER,
        "model",
        _UNSUPPORTED,
    ),
)
_COMPILED = tuple((re.compile(row.pattern, re.IGNORECASE | re.DOTALL), row) for row in ERROR_TEXTS)
SENTENCE_CHARACTERS = 4096  # of an engine's sentence that are looked at


def find_error_text(sentence: str) -> ErrorText | None:
    """Return the row that an engine's sentence belongs to; None = it is not known."""
    beginning = sentence[:SENTENCE_CHARACTERS]
    return next((row for pattern, row in _COMPILED if pattern.match(beginning)), None)
