"""What an engine's error response means: the client's fault, no capacity, a failed server … Pure."""

import math
import re
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Forbidden, Invalid, NoSuchModel, Unsupported, UpstreamFailed
from appliance.engines.outcome import Outcome
from appliance.engines.upstream.attempt import NOTE_CHARACTERS, AttemptFailed
from appliance.engines.upstream.error_event import find_words
from appliance.engines.upstream.error_texts import ErrorText, Verdict, find_error_text

# Sentences of several generations of vLLM (front, renderer, engine), SGLang (front, scheduler) and llama.cpp.
_TOO_LONG = re.compile(
    r"""exceed_context_size
    | maximum\ context\ length
    | longer\ than\ the\ model's\ context
    | exceeds?\ the\ (?:available\ |model's\ )?(?:maximum\ )?context
    | larger\ than\ the\ max\ context\ size
    | longer\ than\ the\ maximum\ model\ length
    | too\ long\ to\ fit\ into\ the\ model
    | input\ (?:\(\d+\ tokens\)\ )?is\ too\ large\ to\ process
    | exceeds\ the\ maximum\ allowed\ length\ \(\d+\ tokens""",
    re.IGNORECASE | re.VERBOSE,
)
_CONTEXT = re.compile(
    r"""maximum\ context\ length\D{1,40}?(\d+)
    | context\ length\ \(?(\d+)
    | context\ length\ of\D{1,20}?(\d+)
    | "n_ctx"\s*:\s*(\d+)
    | context\ size\ \((\d+)
    | maximum\ model\ length\ of\ (\d+)
    | maximum\ allowed\ length\ \((\d+)
    | current\ batch\ size:\ (\d+)""",
    re.IGNORECASE | re.VERBOSE,
)
# vLLM stops counting a long prompt early: "at least 1025" is not its length, and characters are not tokens.
_PROMPT = re.compile(
    r"""(?<!at\ least\ )(?<!bound\ for\ )\b(\d+)\ (?:input\ tokens|in\ the\ messages|in\ the\ prompt)
    | (?:requested|input|has)\D{1,24}?(\d+)\ tokens
    | "n_prompt_tokens"\s*:\s*(\d+)
    | request\ \((\d+)\ tokens\)
    | prompt\ \((?:total\ )?length\ (\d+)\)""",
    re.IGNORECASE | re.VERBOSE,
)
# With the tokens asked for: the sum in words, or vLLM's sum as "(asked > context - prompt)".
_TOTAL = re.compile(r"for a total of (\d+) tokens", re.IGNORECASE)
_SUM = re.compile(r"\((\d+) > \d+ - (\d+)\)")
MAX_RETRY_AFTER_S = 86_400.0


def parse_context_error(text: str) -> tuple[int, int] | None:
    """Read an error text about the length of a prompt, as llama.cpp, vLLM and SGLang write it.

    Returns:
        (tokens that the request needs, context tokens), 0 for a number that is not in it; None = the text is
        about something else.
    """
    if not _TOO_LONG.search(text):
        return None
    context = _first(_CONTEXT, text)
    if (parts := _SUM.search(text)) is not None:
        return int(parts[1]) + int(parts[2]), context
    return _first(_TOTAL, text) or _first(_PROMPT, text), context


def _first(pattern: re.Pattern[str], text: str) -> int:
    """Return the number that the first match has in one of its groups; 0 = there is none."""
    found = pattern.search(text)
    return next((int(number) for number in found.groups() if number), 0) if found else 0


def context_error(
    prompt: int, context: int, *, model: str = "", sentence: str = "", param: str = "messages"
) -> Invalid:
    """Return the error for a prompt that does not fit; prompts are never truncated silently.

    Args:
        prompt: Tokens that the request needs; 0 = unknown.
        context: Tokens of the largest context here; 0 = unknown.
        model: The public name of the model; "" = it is not named.
        sentence: The engine's own, which replaces ours; "" = none.
        param: The field at fault.

    Returns:
        An error whose body has the numbers that are known as llama-server names them: n_prompt_tokens, n_ctx.
    """
    if prompt and context:
        problem = f"The request needs {prompt} tokens; the largest context here is {context} tokens"
    elif prompt:
        problem = f"The request needs {prompt} tokens, more than the context here"
    elif context:
        problem = f"The prompt is longer than the largest context here, {context} tokens"
    else:
        problem = "The prompt is longer than the context here"
    suffix = f" for the model {model!r}" if model else ""
    numbers = {"n_prompt_tokens": prompt, "n_ctx": context}
    return Invalid(
        sentence or f"{problem}{suffix}. Send a shorter prompt, or ask for fewer tokens.",
        code="context_length_exceeded",
        param=param,
        details={
            "prompt_tokens": prompt,
            "context_tokens": context,
            "error_fields": {name: number for name, number in numbers.items() if number},
        },
    )


def interpret_error(status: int, headers: dict[str, str], text: str, label: str) -> Exception:
    """Return the exception that a server's error response means.

    1. 401, 403           it refuses the configured key, which the operator must fix: another may answer
    2. 500 with a sentence of the table in error_texts.py: the caller's fault, or as its row says
    3. prompt too long    another one with more context may answer
    4. 404                it does not have the model, or the address: another one may
    5. 429                no capacity
    6. 501                it was not started for this: another one may
    7. 500 with any other sentence in a JSON body: whose fault it is cannot be told
    8. 3xx                it leads elsewhere, which the operator must set: another one may answer
    9. 408, 5xx           it failed
    10. other 4xx         the client's fault: passed on as OpenAI's error object

    Args:
        status: 300 to 599.
        headers: Lower-case names.
        text: The body, with secrets replaced.
        label: Its name at the start of error texts: "The backend llm-1:8080".
    """
    note = text[:NOTE_CHARACTERS]
    if status in {401, 403}:  # 1
        error: ApplianceError = UpstreamFailed(
            f"{label} refuses the appliance's key. Set its `api_key`.",
            code="upstream_key_refused",
        )
        return AttemptFailed(Outcome.KEY_REFUSED, note, status=status, error=error)
    sentence = read_sentence(text)
    if status == 500 and (row := find_error_text(sentence)) is not None:  # 2
        return _by_row(row, sentence, note)
    if status in {400, 413, 422, 500} and (found := parse_context_error(text)) is not None:  # 3
        return AttemptFailed(Outcome.CONTEXT, note, status=status, context=found, error=context_error(*found))
    if status == 404:  # 4
        return AttemptFailed(
            Outcome.NOT_FOUND,
            note,
            status=404,
            error=NoSuchModel(str(caller_error(404, text, label).message), param="model"),
        )
    if status == 429:  # 5
        return AttemptFailed(Outcome.FULL, note, status=429, retry_after_s=parse_retry_after(headers))
    if status == 501:  # 6
        error = Unsupported(caller_error(status, text, label).message)
        return AttemptFailed(Outcome.UNSUPPORTED, note, status=501, error=error, sentence=sentence)
    if status == 500 and sentence and "loading model" not in sentence.lower():  # 7
        return AttemptFailed(Outcome.ENGINE_ERROR, note, status=500, sentence=sentence)
    if status < 400:  # 8
        return redirect_failure(status, headers, label)
    if status == 408 or status >= 500:  # 9
        return AttemptFailed(
            Outcome.LOADING if "loading model" in text.lower() else Outcome.STATUS,
            note,
            status=status,
            retry_after_s=parse_retry_after(headers) if status == 503 else None,
        )
    return caller_error(status, text, label)  # 10


def redirect_failure(status: int, headers: dict[str, str], label: str) -> AttemptFailed:
    """Return the failure of a server that redirects.

    Its note says where to, without the query; its error, for clients, says the path alone: hosts are for
    operators.

    Args:
        status: 300 to 399.
        headers: Lower-case names.
        label: The server, as for `interpret_error`.
    """
    location = headers.get("location", "").encode("ascii", "replace").decode()[:NOTE_CHARACTERS]
    try:
        parts = urlsplit(location)
        parts = parts._replace(query="", fragment="", netloc=parts.netloc.rpartition("@")[2])
    except ValueError:  # as "http://[x"
        parts = urlsplit("")
    where = f" to {parts.path or '/'!r}" if parts.netloc or parts.path else ""
    where += " of another address" if parts.netloc else ""
    error = UpstreamFailed(
        f"{label} redirects{where} (status {status}). Redirects are not followed: the operator has to set "
        "the address that answers.",
        code="upstream_redirect",
    )
    return AttemptFailed(
        Outcome.STATUS, f"redirects to {urlunsplit(parts)!r}, not followed", status=status, error=error
    )


def _by_row(row: ErrorText, sentence: str, note: str) -> Exception:
    """Return what a row of the table makes of a 500."""
    if row.verdict is Verdict.TOO_LONG:
        found = parse_context_error(sentence) or (0, 0)
        error = context_error(*found, sentence=sentence, param=row.param or "messages")
        return AttemptFailed(Outcome.CONTEXT, note, status=500, context=found, error=error, sentence=sentence)
    if row.verdict is Verdict.FULL:
        return AttemptFailed(Outcome.FULL, note, status=500)
    invalid = Invalid(sentence, param=row.param, code=row.code)
    if row.verdict is Verdict.NOT_STARTED_FOR_IT:
        return AttemptFailed(Outcome.UNSUPPORTED, note, status=500, error=invalid, sentence=sentence)
    return invalid


def find_caller_fault(status: int, text: str) -> Invalid | None:
    """Return the error that a 500 means where every server would say the same; None = it is another error."""
    sentence = read_sentence(text) if status == 500 else ""
    row = find_error_text(sentence) if sentence else None
    if row is None or row.verdict is not Verdict.CALLER:
        return None
    return Invalid(sentence, param=row.param, code=row.code)


def read_sentence(text: str) -> str:
    """Return the sentence of a JSON error body, whatever its shape; "" = there is none."""
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        return ""
    return find_words(value) if isinstance(value, dict) else ""


def parse_retry_after(headers: dict[str, str]) -> float | None:
    """Read `Retry-After`, in seconds or as a date, which is compared with the response's own `Date`.

    Returns:
        Seconds, 0 to MAX_RETRY_AFTER_S; None = there is none, or it cannot be read.
    """
    given = headers.get("retry-after", "")
    try:
        seconds = float(given)
    except ValueError:
        try:
            until, now = parsedate_to_datetime(given), parsedate_to_datetime(headers.get("date", ""))
            seconds = (until - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def caller_error(status: int, text: str, label: str) -> ApplianceError:
    """Return an upstream's 4xx as our error, with its own message, param and code.

    A prompt that is too long has the code `context_length_exceeded`: agents then shorten the conversation.

    Args:
        status: 400 to 499; 403 is Forbidden, everything else Invalid; it stays in `details["status"]`.
        text: The response's body: OpenAI's error object, or anything.
        label: The upstream, for a body without a message.
    """
    try:
        value = jsons.loads(text)
    except jsons.InvalidJson:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    if not isinstance(error, dict):
        error = {}
    message = find_words(value) if isinstance(value, dict) else text
    message = message or f"{label} refused the request with status {status}."
    param, code = error.get("param"), error.get("code")
    param = param if isinstance(param, str) else None
    raised: ApplianceError
    if status in {400, 413, 422} and (found := parse_context_error(text)) is not None:
        raised = context_error(*found, sentence=message, param=param or "messages")
    else:
        kind = Forbidden if status == 403 else Invalid
        raised = kind(message, param=param, code=code if isinstance(code, str) else None)
    raised.details["status"] = status
    return raised
