"""The settings of downloads: what is no address of a server is refused at the start, not at the first download."""

import pytest

from appliance.base.settings import InvalidSettings
from appliance.downloads.settings import DownloadSettings


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "ENDPOINT"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ht tp://hub.example", "is not an http(s) address"),
        ("hub.example", "is not an http(s) address"),
        ("https://", "is not an http(s) address"),
        ("https://hub example", "is no host"),
        ("https://hub.example:port", "Port could not be cast"),
        ("https://user:pass@hub.example", "must not hold credentials"),
        ("https://hub.example?a=b", "must not hold '?' or '#'"),
    ],
)
def test_what_is_no_address_is_refused(variable: str, value: str, words: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        DownloadSettings.from_env({variable: value})
    (problem,) = refused.value.problems
    assert problem.variable == variable
    assert words in str(problem)


@pytest.mark.parametrize(
    ("value", "taken"),
    [("https://hub.example/", "https://hub.example"), ("http://[::1]:80", "http://[::1]:80")],
)
def test_an_address_is_taken(value: str, taken: str) -> None:
    assert DownloadSettings.from_env({"HF_ENDPOINT": value}).hf_endpoint == taken
