"""What is passed on of the worker's output: lines of any length, with a limit per second."""

import asyncio

import pytest

from appliance.base.clock import FakeClock
from appliance.host.worker.output import MAX_LINE_BYTES, LineSplitter, OutputBudget, forward_output


def lines_of(*pieces: bytes, longest: int = 5) -> tuple[list[bytes], int]:
    splitter = LineSplitter(longest)
    forwarded = [line for piece in pieces for line in splitter.split(piece)]
    if rest := splitter.rest():
        forwarded.append(rest)
    return forwarded, splitter.skipped_bytes


@pytest.mark.parametrize(
    ("pieces", "forwarded", "skipped_bytes"),
    [
        ([b"one\ntwo\n"], [b"one", b"two"], 0),
        ([b"o", b"ne\nt", b"wo"], [b"one", b"two"], 0),
        ([b"a\n\nb\n"], [b"a", b"", b"b"], 0),
        ([b"12345\n123456\nx\n"], [b"12345", "12345…".encode(), b"x"], 1),
        ([b"1234", b"5678", b"9", b"0\nnext\n"], ["12345…".encode(), b"next"], 5),
        ([b"123456789", b"", b"\n", b"\n"], ["12345…".encode(), b""], 4),
        ([b"\xff\n"], [b"\xff"], 0),
    ],
)
def test_lines_are_split_and_every_byte_is_counted(
    pieces: list[bytes], forwarded: list[bytes], skipped_bytes: int
) -> None:
    assert lines_of(*pieces) == (forwarded, skipped_bytes)


def test_what_is_skipped_ends_at_the_end_of_a_line() -> None:
    splitter = LineSplitter(100)
    assert list(splitter.split(b"one\ntw")) == [b"one"]
    splitter.skip(b"o\nthr")
    assert list(splitter.split(b"ee\nfour\n")) == [b"four"]
    assert splitter.skipped_bytes == len(b"two\nthr") + len(b"ee")
    splitter.skip(b"five\n")
    assert list(splitter.split(b"six\n")) == [b"six"]


def test_budget_is_renewed_each_second() -> None:
    budget = OutputBudget(max_lines=2, max_bytes=10)
    budget.take(b"a")
    assert not budget.is_spent
    budget.take(b"b")
    assert budget.is_spent
    assert not budget.renew(0.9)
    assert budget.renew(1.0)
    assert not budget.is_spent
    budget.take(b"x" * 10)
    assert budget.is_spent


async def test_flood_of_any_shape_is_passed_on_in_part_and_counted() -> None:
    for line in (b"x\n", b"y" * 70 + b"\n", b"z" * 60_000 + b"\n"):
        clock, forwarded, stream = FakeClock(), [], asyncio.StreamReader()
        stream.feed_data(line * (2_000_000 // len(line)))
        stream.feed_eof()
        await forward_output(stream, forwarded.append, clock.monotonic_s)
        texts, note = forwarded[:-1], forwarded[-1]
        assert len(texts) <= 500 + 1024
        assert sum(map(len, texts)) <= 262_144 + 2 * MAX_LINE_BYTES
        assert int(note.split()[0][1:]) > 1_500_000


async def test_each_second_has_a_budget_and_reports_what_was_skipped() -> None:
    clock, forwarded, stream = FakeClock(), [], asyncio.StreamReader()
    stream.feed_data(b"x\n" * 4000)
    reading = asyncio.create_task(forward_output(stream, forwarded.append, clock.monotonic_s))
    # Until it has forwarded what the limit allows, and waits for more:
    while not (forwarded and not stream._buffer and stream._waiter is not None):
        await asyncio.sleep(0.001)
    before = len(forwarded)
    clock.advance(1.0)
    stream.feed_data(b"again\n")
    stream.feed_eof()
    await reading
    assert before < 2500
    assert forwarded[-1] == "again"
    assert forwarded[-2] == f"[{8000 - 2 * before} bytes of output left out]"
