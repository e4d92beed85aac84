"""Sources by their scheme."""

import pytest

from appliance.base.errors import Invalid
from appliance.downloads.sources.table import split_source


def test_sources_are_told_by_their_scheme() -> None:
    assert split_source("ns/repo") == ("hf", "ns/repo")
    assert split_source("S3://b/p") == ("s3", "b/p")
    assert split_source(" hf://ns/repo@main/x ") == ("hf", "ns/repo@main/x")
    for text in (
        "",
        "repo",
        "/etc/passwd",
        "./models",
        "~/x",
        "ns/repo/../x",
        "gs://b/p",
        "http://x/y",
        "s3:/b",
        "a\0b/c",
    ):
        with pytest.raises(Invalid):
            split_source(text)
    with pytest.raises(Invalid, match="Did you mean https"):
        split_source("http://x/y")
    assert "for a folder of this machine" in _message(lambda: split_source("/data/x")).lower()


def _message(ask: object) -> str:
    with pytest.raises(Invalid) as caught:
        ask()  # type: ignore[operator]
    return caught.value.message
