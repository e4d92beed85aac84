"""Lines of logs on a terminal and elsewhere."""

import io

import pytest

from appliance.cli.render.logs import log_style
from appliance.cli.screen import Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ('{"event":"x","level":"warning"}', "yellow"),
        ('{"level": "error"}', "red"),
        ("2026-11-30T18:00:00Z [error    ] failed", "red"),
        ("2026-11-30T18:00:00Z [info     ] fine", ""),
        ("words of a worker", ""),
    ],
)
def test_the_style_of_a_line_is_that_of_its_level(text: str, style: str) -> None:
    assert log_style(text) == style


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        Screen(out=out).log_line("12:00:00 appliance:", "[error    ] \x1b[2Jgone", "red")
    assert pipe.getvalue() == "12:00:00 appliance: [error    ] gone\n"
    assert "\x1b[31m" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
