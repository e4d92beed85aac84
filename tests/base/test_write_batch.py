"""Writes are made at the end of the turn, in their order, and one that fails does not keep the others back."""

import asyncio

from structlog.testing import capture_logs

from appliance.base.write_batch import MAX_HELD_BYTES, WriteBatch


class Transport:
    def __init__(self, written: list[tuple[str, bytes]], name: str, error: Exception | None = None) -> None:
        self.written, self.name, self.error = written, name, error
        self.is_closed = self.is_aborted = False

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.written.append((self.name, data))

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_aborted = True


async def test_what_is_written_in_a_turn_goes_out_at_its_end() -> None:
    batch, written = WriteBatch(), list[tuple[str, bytes]]()
    first, second = Transport(written, "a"), Transport(written, "b")
    batch.write(first, b"1")
    batch.write(second, b"2")
    batch.write(first, b"3")
    assert written == []
    await asyncio.sleep(0)
    assert written == [("a", b"1"), ("b", b"2"), ("a", b"3")]
    batch.write(first, b"4")
    batch.flush()
    assert written[3:] == [("a", b"4")]
    await asyncio.sleep(0)
    assert len(written) == 4


async def test_much_is_written_at_once() -> None:
    batch, written = WriteBatch(), list[tuple[str, bytes]]()
    transport = Transport(written, "a")
    batch.write(transport, bytes(MAX_HELD_BYTES))
    assert written == []
    batch.write(transport, b"1")
    assert [len(data) for _, data in written] == [MAX_HELD_BYTES, 1]


async def test_a_failed_write_ends_its_connection_alone() -> None:
    batch, written = WriteBatch(), list[tuple[str, bytes]]()
    failing, closed = Transport(written, "a", OSError("no")), Transport(written, "b", RuntimeError("closed"))
    closed.is_closed = True
    well = Transport(written, "c")
    with capture_logs() as lines:
        for transport in (failing, closed, well):
            batch.write(transport, b"x")
        batch.flush()
    assert written == [("c", b"x")]
    assert (failing.is_aborted, closed.is_aborted) == (True, False)
    assert [line["event"] for line in lines] == ["write_failed"]
