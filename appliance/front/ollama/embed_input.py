"""Embedding inputs that are longer than the model's context: cut, as Ollama does, or refused.

The engine's own numbers say how long a text is and how much fits; a text is cut at a character. Pure but for
the requests that are handed in.

Source: Ollama's `truncate` of /api/embed, true by default.
"""

from collections.abc import Awaitable, Callable

from appliance.base.errors import Invalid

Vectors = tuple[list[list[float]], int]  # one vector per text, and the number of tokens
Embed = Callable[[list[str]], Awaitable[Vectors]]
OVERFLOW = "context_length_exceeded"
TOO_LONG = "the input length exceeds the context length"  # Ollama's words
MAX_CUTS = 8  # of one text until it fits
MAX_REFINEMENTS = 3  # of a text that fits, to keep more of it
WELL_FILLED = 0.95  # part of the context: a cut that fills so much is kept
SAFETY = 0.98  # of the characters that should fit by the numbers


async def embed_fitting(texts: list[str], embed: Embed, *, is_truncating: bool) -> Vectors:
    """Embed texts; those that are too long for the model are cut.

    1. all fit                              → one request
    2. some do not, and must not be cut     → refused
    3. otherwise                            → those that surely fit in one request, the others one by one

    Args:
        texts: One at least.
        embed: Asks the engine.
        is_truncating: Cut what does not fit.

    Raises:
        Invalid: They do not fit, and are not to be cut, or cannot be.
        ApplianceError: Any other error of `embed`.
    """
    try:
        return await embed(texts)  # 1
    except Invalid as error:
        if error.code != OVERFLOW:
            raise
        if not is_truncating:
            raise Invalid(TOO_LONG, code=OVERFLOW, param="input", details=error.details) from error  # 2
        if len(texts) == 1:
            return await _embed_cut(texts[0], embed, error)
        limit = error.details.get("context_tokens") or 0
    return await _embed_mixed(texts, embed, limit)  # 3


async def _embed_mixed(texts: list[str], embed: Embed, limit: int) -> Vectors:
    """Embed texts of which one at least is too long for a context of `limit` tokens (0 = unknown)."""
    vectors: list[list[float]] = [[] for _ in texts]
    total = 0
    short = [number for number, text in enumerate(texts) if len(text.encode()) < limit // 2]
    if short:  # a token is hardly ever less than a byte, and there are few special ones
        found, total = await embed([texts[number] for number in short])
        for number, vector in zip(short, found, strict=True):
            vectors[number] = vector
    for number in sorted(set(range(len(texts))) - set(short)):
        try:
            [vectors[number]], tokens = await embed([texts[number]])
        except Invalid as error:
            if error.code != OVERFLOW:
                raise
            [vectors[number]], tokens = await _embed_cut(texts[number], embed, error)
        total += tokens
    return vectors, total


async def _embed_cut(text: str, embed: Embed, error: Invalid) -> Vectors:
    """Embed the longest beginning of a text that fits, or nearly.

    1. too long     → cut by the numbers that the engine says, or to half
    2. it fits, and fills the context         → kept
    3. it fits, and leaves much of it unused  → a longer beginning is tried, a few times

    Args:
        text: Too long.
        embed: Asks the engine.
        error: What it said of the whole text.
    """
    too_long, fitting, best = len(text), 0, None
    length, refinements = _shorter(too_long, error), 0
    for _ in range(MAX_CUTS):
        try:
            found = await embed([text[:length]])
        except Invalid as exc:  # 1
            if exc.code != OVERFLOW:
                raise
            error, too_long = exc, length
            if best is not None:
                refinements += 1
            if refinements >= MAX_REFINEMENTS or length <= 1:
                break
            length = (fitting + length) // 2 if best is not None else _shorter(length, exc)
            continue
        best, fitting = found, length
        limit, tokens = error.details.get("context_tokens") or 0, found[1]
        if not tokens or tokens >= limit * WELL_FILLED or refinements >= MAX_REFINEMENTS:  # 2
            break
        refinements += 1
        length = min(int(length * limit / tokens * SAFETY), too_long - 1)  # 3
        if length <= fitting:
            break
    if best is None:
        raise error
    return best


def _shorter(length: int, error: Invalid) -> int:
    """Return how many of `length` characters should fit, by what the engine said of them."""
    tokens, limit = error.details.get("prompt_tokens") or 0, error.details.get("context_tokens") or 0
    if 0 < limit < tokens:
        return max(1, min(length - 1, int(length * limit / tokens * SAFETY)))
    if limit and not tokens and length > limit * 8:  # the engine did not count; no text has so long words
        return limit * 8
    return max(1, length // 2)
