"""The files of the web UI: small, without foreign hosts, with every word in the list of words."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from appliance.front.ui.files import UiFiles

WEB = Path(__file__).parents[3] / "appliance/front/ui/web"
OWN = sorted(path for path in WEB.rglob("*.js") if "vendor" not in path.parts)
MAX_RAW, MAX_PACKED = 150_000, 60_000
# Words whose ids are made of two parts.
MADE = ("status_", "reason_", "finish_", "standing_", "role_")
FORBIDDEN = (
    r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|\beval\(|new Function|document\.write"
)


def words() -> dict[str, str]:
    return dict(json.loads((WEB / "strings/en.json").read_text()))


def used_ids() -> set[str]:
    text = "".join(path.read_text() for path in OWN)
    ids = set(re.findall(r'\bt\("([a-z_0-9]+)"', text))
    ids |= set(re.findall(r'"(starter_\d)"', text))
    for start in ("get_model", "use_engines", "relay"):
        ids |= {start, f"{start}_says"}
    pages = re.findall(r'\{ id: "(\w+)", (?:page|load)', text)
    return ids | set(pages)


def test_every_word_is_there_and_none_is_unused() -> None:
    known = {word for word in words() if not word.startswith(MADE)}
    assert used_ids() - set(words()) == set()
    assert known - used_ids() == set()


def test_words_are_sorted() -> None:
    assert list(words()) == sorted(words())


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(WEB)))
def test_no_file_makes_html_of_text(path: Path) -> None:
    assert not re.findall(FORBIDDEN, path.read_text())
    for tag in re.findall(r"<a [^>]*target=[^>]*>", path.read_text()):
        assert 'rel="noopener noreferrer nofollow"' in tag


def test_nothing_is_loaded_from_other_hosts() -> None:
    for path in (*OWN, WEB / "index.html", WEB / "app.css"):
        for found in re.findall(r"https?://[\w.-]+", path.read_text()):
            assert found in ("https://hf.co", "http://HOST"), (path, found)


def test_colours_are_named_in_one_place() -> None:
    rules = (WEB / "app.css").read_text().partition("\n}\n")[2]
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)) <= {"#0003", "#0006"}, "shadows alone"


def test_the_files_are_small() -> None:
    paths = [path for path in WEB.rglob("*") if path.is_file() and path.name != "LICENSES.txt"]
    assert sum(path.stat().st_size for path in paths) <= MAX_RAW
    assert sum(len(gzip.compress(path.read_bytes())) for path in paths) <= MAX_PACKED


def test_vendored_files_are_those_of_the_list() -> None:
    listed = json.loads((WEB / "vendor/vendor.json").read_text())
    assert set(listed) == {path.name for path in (WEB / "vendor").glob("*.js")}
    for name, row in listed.items():
        assert hashlib.sha256((WEB / "vendor" / name).read_bytes()).hexdigest() == row["sha256"]
        assert f"{row['package']} {row['version']}" in (WEB / "vendor/LICENSES.txt").read_text()


def test_files_are_found_by_their_path_alone() -> None:
    files = UiFiles()
    assert not files.is_loaded
    files.load()
    page = files.get("index.html")
    assert page is not None
    assert page.content_type == "text/html; charset=utf-8"
    assert gzip.decompress(page.packed) == page.body
    assert files.get("pages/models.js") is not None
    for wrong in ("", "pages", "../__init__.py", "/etc/passwd", "pages/../index.html"):
        assert files.get(wrong) is None


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_have_enough_contrast(theme: int) -> None:
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", (WEB / "app.css").read_text())
    colours = {name: (light, dark)[theme] for name, light, dark in pairs}

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(colours[one]), luminance(colours[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for text in ("text", "text-2", "text-3", "accent"):
        for ground in ("bg", "surface", "sunken"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for kind in ("good", "warn", "bad", "accent"):
        assert contrast(kind, f"{kind}-soft") >= 4.5, kind
    assert contrast("on-accent", "accent") >= 4.5
    assert contrast("edge", "surface") >= 3
