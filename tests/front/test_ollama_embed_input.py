"""Embedding inputs that are longer than the model's context."""

import pytest

from appliance.base.errors import Invalid
from appliance.engines.upstream.refusal import context_error
from appliance.front.ollama.embed_input import MAX_CUTS, Vectors, embed_fitting


class Engine:
    """Has `limit` tokens for each text; a token is `chars` characters, a text has two more.

    Args:
        limit: Of one text.
        chars: Of one token.
        counts: What it says of a text too long: both numbers, its limit alone, nothing.
    """

    def __init__(self, limit: int = 10, *, chars: int = 1, counts: str = "both") -> None:
        self.limit, self.chars, self.counts = limit, chars, counts
        self.asked: list[list[str]] = []

    def tokens(self, text: str) -> int:
        return 2 + -(-len(text) // self.chars)

    async def embed(self, texts: list[str]) -> Vectors:
        self.asked.append(texts)
        for text in texts:
            if (tokens := self.tokens(text)) > self.limit:
                said = {"both": (tokens, self.limit), "limit": (0, self.limit), "nothing": (0, 0)}[
                    self.counts
                ]
                raise context_error(*said)
        return [[float(len(text))] for text in texts], sum(self.tokens(text) for text in texts)


async def test_texts_that_fit_are_one_request() -> None:
    engine = Engine()
    assert await embed_fitting(["a", "bb"], engine.embed, is_truncating=True) == ([[1.0], [2.0]], 7)
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("limit", "chars", "length"),
    [(10, 1, 200), (512, 1, 12_000), (512, 4, 12_000), (512, 4, 2_050), (100, 7, 99_999)],
)
@pytest.mark.parametrize("counts", ["both", "limit", "nothing"])
async def test_a_text_too_long_is_cut_to_what_nearly_fills_the_context(
    limit: int, chars: int, length: int, counts: str
) -> None:
    engine = Engine(limit, chars=chars, counts=counts)
    [[kept]], tokens = await embed_fitting(["x" * length], engine.embed, is_truncating=True)
    assert tokens <= limit
    assert kept >= (limit - 2) * chars * (0.9 if counts == "both" else 0.4)
    assert len(engine.asked) <= 1 + MAX_CUTS


async def test_of_several_only_those_too_long_are_cut() -> None:
    engine = Engine(20)
    texts = ["a", "x" * 90, "bb", "y" * 18, "z" * 33]
    vectors, tokens = await embed_fitting(texts, engine.embed, is_truncating=True)
    lengths = [vector[0] for vector in vectors]
    assert (lengths[0], lengths[2], lengths[3]) == (1.0, 2.0, 18.0)
    assert 15 <= lengths[1] <= 18
    assert 15 <= lengths[4] <= 18
    assert tokens == sum(lengths) + 2 * 5
    assert engine.asked[1] == ["a", "bb"]


@pytest.mark.parametrize("texts", [["x" * 90], ["a", "x" * 90]])
async def test_without_truncation_too_long_a_text_is_refused_in_ollamas_words(texts: list[str]) -> None:
    engine = Engine()
    with pytest.raises(Invalid, match=r"^the input length exceeds the context length$") as caught:
        await embed_fitting(texts, engine.embed, is_truncating=False)
    assert (caught.value.code, len(engine.asked)) == ("context_length_exceeded", 1)


async def test_a_text_that_never_fits_is_refused_in_the_engines_words() -> None:
    engine = Engine(0)
    with pytest.raises(Invalid, match="more than the context here"):
        await embed_fitting(["x" * 90], engine.embed, is_truncating=True)
    assert len(engine.asked) <= 1 + MAX_CUTS


@pytest.mark.parametrize("texts", [["a"], ["a", "b"]])
async def test_another_fault_is_not_answered_by_cutting(texts: list[str]) -> None:
    async def embed(texts: list[str]) -> Vectors:
        raise Invalid("bad")

    with pytest.raises(Invalid, match="bad"):
        await embed_fitting(texts, embed, is_truncating=True)
