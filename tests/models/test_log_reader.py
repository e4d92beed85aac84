"""Logs of llama-servers as operators read them."""

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

from appliance.base.logs import SECRETS
from appliance.models.runner.log_reader import MAX_TAIL_BYTES, READ_BYTES, LogReader, find_log, follow_log


def test_the_latest_log_of_a_model_is_found(tmp_path: Path) -> None:
    for at, name in enumerate(("a_8080.log", "a_8081.log", "a_8081.log.1", "a_b_8080.log", "a_x.log")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert find_log(tmp_path, "a") == tmp_path / "a_8081.log"
    assert find_log(tmp_path, "a", 8080) == tmp_path / "a_8080.log"
    assert find_log(tmp_path, "a/b") == tmp_path / "a_b_8080.log"
    assert find_log(tmp_path, "other") is None
    assert find_log(tmp_path / "none", "a") is None


def test_the_last_lines_are_read_plain_and_without_secrets(tmp_path: Path) -> None:
    SECRETS.learn(["log-secret-123"])
    path = tmp_path / "log"
    path.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\r\nkey log-secret-123 \xff\nhalf")
    reader = LogReader()
    assert reader.tail(lambda: path, 2) == ["two", "key [secret] \N{REPLACEMENT CHARACTER}"]
    with path.open("ab") as file:
        file.write(b" done\nnext\n")
    assert reader.more(lambda: path) == ["half done", "next"]
    assert reader.more(lambda: path) == []
    assert LogReader().tail(lambda: path, 0) == []


def test_a_large_log_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(
        b"x" * 99 + b"\n" + b"y" * 99_999 + b"\n" + (b"z" * 99 + b"\n") * (MAX_TAIL_BYTES // 100)
    )
    lines = LogReader().tail(lambda: path, 100_000)
    assert set(lines) == {"z" * 99}


def test_a_log_that_is_replaced_or_shortened_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    reader = LogReader()
    assert reader.tail(lambda: path, 5) == ["old"]
    path.rename(tmp_path / "log.1")
    assert reader.more(lambda: path) == []
    path.write_text("new one\n")
    assert reader.more(lambda: path) == ["new one"]
    path.write_text("less\n")
    assert reader.more(lambda: path) == ["less"]


def test_a_reader_that_falls_back_misses_lines_and_keeps_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n")
    reader = LogReader()
    reader.tail(lambda: path, 5)
    with path.open("a") as file:
        file.write("a\n" * READ_BYTES)
    assert len(reader.more(lambda: path)) <= READ_BYTES // 2 + 1


def test_a_model_that_was_never_started_has_no_lines() -> None:
    reader = LogReader()
    assert reader.tail(lambda: None, 5) == []
    assert reader.more(lambda: None) == []


async def test_new_lines_are_followed_until_the_end(tmp_path: Path) -> None:
    path, is_over = tmp_path / "log", asyncio.Event()
    path.write_text("old\n")
    seen: list[list[str]] = []
    follow = follow_log(lambda: lambda: path, lines=5, is_over=is_over, poll_s=0.01)
    async with aclosing(follow) as pieces:
        async for lines in pieces:
            seen.append(lines)
            if len(seen) == 1:
                with path.open("a") as file:
                    file.write("new\n")
            else:
                is_over.set()
    assert seen == [["old"], ["new"]]
