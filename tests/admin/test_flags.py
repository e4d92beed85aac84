"""Command lines as programs in Go read them."""

import pytest

from appliance.admin.flags import GoFlag, WrongUsage, parse_flags, switches
from appliance.admin.tables import align

FLAGS = switches(["dv", "developer-mode"], ["json"]) | {"to": GoFlag("to", has_value=True)}


@pytest.mark.parametrize(
    ("words", "values", "rest"),
    [
        (["-dv", "users"], {"developer-mode": "1"}, ["users"]),
        (["--dv", "users"], {"developer-mode": "1"}, ["users"]),
        (["-developer-mode=true"], {"developer-mode": "1"}, []),
        (["--developer-mode=F"], {"developer-mode": "0"}, []),
        (["-to", "1", "-json", "x"], {"to": "1", "json": "1"}, ["x"]),
        (["--to=1"], {"to": "1"}, []),
        (["-to="], {"to": ""}, []),
        (["-to", "-json"], {"to": "-json"}, []),
        # flags end with the first word that is none, with `-` or behind `--`
        (["users", "-dv"], {}, ["users", "-dv"]),
        (["-", "-dv"], {}, ["-", "-dv"]),
        (["-dv", "--", "-json"], {"developer-mode": "1"}, ["-json"]),
        ([], {}, []),
    ],
)
def test_flags_are_read_as_go_reads_them(words: list[str], values: dict[str, str], rest: list[str]) -> None:
    assert parse_flags(words, FLAGS) == (values, rest)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-what"], "flag provided but not defined: -what"),
        (["--to"], "flag needs an argument: -to"),
        (["-json=2"], "invalid boolean value '2' for -json: use true or false"),
        (["---dv"], "flag provided but not defined: --dv"),
    ],
)
def test_wrong_flags_are_named(words: list[str], text: str) -> None:
    with pytest.raises(WrongUsage) as caught:
        parse_flags(words, FLAGS)
    assert str(caught.value) == text


def test_tables_are_aligned_and_cannot_control_a_terminal() -> None:
    rows = [["ID", "NAME", "X"], ["1", "a\x1b[31mb\nc", "long"], ["333"]]
    assert align(rows) == "ID  NAME  X\n1   ab c  long\n333\n"
    assert align([]) == ""
