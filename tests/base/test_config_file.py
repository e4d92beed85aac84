"""The configuration file: JSON, YAML 1.2, what is neither, and what would be too much work."""

import os
from pathlib import Path
from typing import Any

import pytest

from appliance.base.config_file import MAX_BYTES, parse_config, read_config_file
from appliance.base.config_yaml import MAX_YAML_BYTES

BILLION = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefg", "bcdefgh", strict=True)
)

MERGES = "a: &a {a1: 1, a2: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, after in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("010", 10),
        ("0x10", 16),
        ("-3", -3),
        ("1.5e3", 1500.0),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("~", None),
        ("", None),
        ('"1"', "1"),
        ("[a, 1, true]", ["a", 1, True]),
        ("{b: {c: 1}}", {"b": {"c": 1}}),
        ("http://a:1 # remark", "http://a:1"),
    ],
)
def test_values_of_yaml_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_config(f"a: {text}\n".encode(), ".yaml") == {"a": value}


def test_references_of_yaml_are_followed() -> None:
    text = "base: &b {x: 1, y: 2}\nrow:\n  <<: *b\n  y: 3\n1: z\n"
    assert parse_config(text.encode(), ".yml") == {
        "base": {"x": 1, "y": 2},
        "row": {"x": 1, "y": 3},
        "1": "z",
    }


def test_first_of_several_merged_mappings_wins() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nrow: {<<: [*a, *b], z: 3}\nself: &s {<<: *s, x: 1}\n"
    value = parse_config(text.encode(), ".yaml")
    assert value["row"] == {"x": 1, "y": 1, "z": 3}
    assert value["self"] == {"x": 1}


def test_keys_of_yaml_keep_their_text() -> None:
    text = "010: a\n0x10: b\nnull: c\nTrue: d\n1.0: e\n2024-01-01: f\n"
    assert list(parse_config(text.encode(), ".yaml")) == ["010", "0x10", "null", "True", "1.0", "2024-01-01"]


@pytest.mark.parametrize(
    ("content", "warned"),
    [
        ('{"models": {"a": {}, "b": {}, "a": {"x": 1}}}', ("'a'",)),
        ('{"a": [{"b": 1, "b": 2}], "c": 1, "c": 2}', ("'b'", "'c'")),
        ('{"a": {"b": 1}, "b": {"b": 2}}', ()),
    ],
)
def test_key_that_json_has_twice_is_a_warning(tmp_path: Path, content: str, warned: tuple[str, ...]) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert read_config_file(path).warnings == tuple(
        f"The key {key} is there twice in one object: only the last one counts. Remove the other."
        for key in warned
    )


@pytest.mark.parametrize(
    ("data", "ending", "value"),
    [
        (b'{"a": 1}', ".json", {"a": 1}),
        (b'  {"a": 1}', ".conf", {"a": 1}),
        (b"a: 1", "", {"a": 1}),
        (b"\xef\xbb\xbfa: 1", ".yaml", {"a": 1}),
        (b'{"a": 1, "b": [on]}', ".yaml", {"a": 1, "b": ["on"]}),
    ],
)
def test_form_is_told_by_ending_and_first_character(data: bytes, ending: str, value: Any) -> None:
    assert parse_config(data, ending) == value


@pytest.mark.parametrize(
    ("data", "ending", "said"),
    [
        (b"a: 1\na: 2", ".yaml", "not YAML: the key 'a' is there twice (line 2, column 1)."),
        (b"? [1]\n: 2", ".yaml", "a key must be text"),
        (b"a: 1\n\tb: 2", ".yaml", "(line 2, column 1)"),
        (b"#" * (MAX_YAML_BYTES + 1), ".yaml", f"larger than {MAX_YAML_BYTES} bytes, which is too much YAML"),
        (b"- 1", ".yaml", "one YAML mapping"),
        (b"", ".yaml", "one YAML mapping"),
        (b"\xff", ".yaml", "not UTF-8"),
        (b"a: !!python/name:os.system x", ".yaml", "could not determine a constructor"),
        (b"a: &a [*a]", ".yaml", "nested more than 50 levels"),
        (BILLION.encode(), ".yaml", "more than 200000 values"),
        (b"[1]", ".json", "one JSON object"),
        (b'{"a": 1', ".json", "not JSON: unexpected end of data: line 1"),
        (b"a:\n  b: 1", ".json", "This looks like YAML: let the file's name end with .yaml."),
        (b"[" * 60 + b"]" * 60, ".txt", "one JSON object"),
        (b" " * (MAX_BYTES + 1), ".json", f"larger than {MAX_BYTES} bytes"),
        # The reader in C would end the process.
        (b"[" * 100_000, ".yaml", "nested more than 100 levels deep"),
        (b"- " * 100_000, ".yaml", "nested more than 100 levels deep"),
        (b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 200)), ".yaml", "more than 100 levels deep"),
        (b'{"a":' * 100_000, ".json", "not JSON: depth limit exceeded"),
        (MERGES.encode(), ".yaml", "<< copies more than 200000 values (line"),
        (b"a: &a {x: 1}\nb: {<<: [*a, 1]}", ".yaml", "<< needs a mapping, or a list of mappings (line 2"),
        (b'a: {b: "x\\0y"}', ".yaml", "The file has at a.b a text with a zero byte"),
        (b'a: [1, {"x\\0": 1}]', ".yaml", "at a key of `a.1` a text with a zero byte"),
        (b'{"a": "\\ud800"}', ".json", "at a a text with a zero byte, or a half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used_is_told(data: bytes, ending: str, said: str) -> None:
    with pytest.raises(ValueError, match="The file") as caught:
        parse_config(data, ending)
    assert said in str(caught.value)


def test_file_says_who_may_read_it_and_changes_its_signature(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1")
    path.chmod(0o640)
    first = read_config_file(path)
    assert (first.sections, first.problem, first.is_open) == ({"a": 1}, "", False)
    path.chmod(0o644)
    assert read_config_file(path).is_open
    other = tmp_path / "other"
    other.write_text("a: 2")
    other.replace(path)
    assert read_config_file(path).signature != first.signature


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    assert read_config_file(None).problem == ""
    missing = read_config_file(tmp_path / "x.yaml").problem_at("models.a", "It is wrong.")
    assert str(missing).startswith(f"CONFIG_PATH={tmp_path}/x.yaml: models.a: allowed: a JSON or YAML file")
    assert "No such file" in read_config_file(tmp_path / "x.yaml").problem
    assert "Is a directory" in read_config_file(tmp_path).problem


@pytest.mark.timeout(10)
def test_device_or_pipe_is_not_read_as_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (Path(os.devnull), tmp_path / "pipe.yaml"):
        assert read_config_file(path).problem == "The file cannot be read: it is no regular file."


def test_impossible_name_of_the_file_is_told() -> None:
    assert read_config_file(Path("/a\0b")).problem == "The file cannot be read: embedded null byte."
