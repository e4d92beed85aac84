"""The settings of the markets: what is refused, and what is warned of."""

import pytest

from appliance.settings import load

SECRET = "x7Kq2-Vt9bLw4Zr8Nc1Pm6Ys3Hd5Gf0J"
BASE = {"ACCOUNTS": "1", "JWT_SECRET": SECRET, "MARKET": "1", "UNPRICED": "free"}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ACCOUNTS": "0"}, "Set ACCOUNTS=1"),
        ({"GPU_ALLOW_START_WITHOUT_PROVIDERS": "0"}, "no market has a key"),
        ({"VASTAI_API_URL": "console.vast.ai"}, "is not an http(s) address"),
    ],
)
def test_settings_that_are_refused(environ: dict[str, str], words: str) -> None:
    settings, problems = load({**BASE, **environ})
    assert settings is None
    assert any(words in str(problem) for problem in problems if problem.is_fatal)


def test_no_key_of_a_market_is_a_warning() -> None:
    settings, problems = load(BASE)
    assert settings is not None
    assert any("Set VASTAI_API_KEY or IONET_API_KEY" in str(problem) for problem in problems)


def test_with_a_key_there_is_nothing_to_say() -> None:
    settings, problems = load({**BASE, "VASTAI_API_KEY": "k1", "VASTAI_API_URL": "http://127.0.0.1:1/"})
    assert settings is not None
    assert settings.market.vastai_api_url == "http://127.0.0.1:1"
    assert not [problem for problem in problems if "market" in str(problem).lower()]
