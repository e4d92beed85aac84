"""Names of files from elsewhere: which may be written, and which files are selected."""

import pytest

from appliance.base.errors import Invalid, NotFound
from appliance.downloads.names import check_names, find_unsafe_reason, select_files
from appliance.downloads.sources.contract import RemoteFile


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "c:x",
        "a\\b",
        "a//b",
        "./a",
        "a/.",
        "",
        "a\0b",
        "a\nb",
        ".lock",
        ".download/x",
        ".download.json",
        "x" * 256,
        "a/" + "ü" * 128,
        "\udc80",
    ],
)
def test_names_that_lead_elsewhere_or_cannot_be_are_refused(name: str) -> None:
    assert find_unsafe_reason(name)
    with pytest.raises(Invalid) as caught:
        check_names([RemoteFile(name, 1)])
    assert caught.value.code == "unsafe_name"


def test_unusual_names_are_fine_and_clashes_are_not() -> None:
    check_names(
        [
            RemoteFile(name, 1)
            for name in (
                ".gitattributes",
                "a b",
                "ü/模型.gguf",
                "a..b",
                "sub/.lock",
                "x" * 255,
                "a/b",
                "ab:c",
                "ab",
            )
        ]
    )
    with pytest.raises(Invalid, match="twice"):
        check_names([RemoteFile("a", 1), RemoteFile("a", 2)])
    with pytest.raises(Invalid, match="as a file and as a folder"):
        check_names([RemoteFile("a/b/c", 1), RemoteFile("a", 2)])


def test_patterns_choose_files() -> None:
    files = [RemoteFile(name, 1) for name in ("a.gguf", "sub/b.gguf", "sub/c.bin", "README.md")]

    def chosen(**patterns: str) -> list[str]:
        return [file.path for file in select_files(files, patterns, source="x")]

    assert chosen() == ["a.gguf", "sub/b.gguf", "sub/c.bin", "README.md"]
    assert chosen(include="*.gguf") == ["a.gguf", "sub/b.gguf"]
    assert chosen(include="sub/, README.md", exclude="*.bin") == ["sub/b.gguf", "README.md"]
    with pytest.raises(NotFound, match="has no files"):
        select_files([], {}, source="x")
