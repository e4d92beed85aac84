"""The journal of a process: what was held, charged and leased, before the database knows it.

A record is written at once, so that a killed process loses nothing; the disk gets it every SYNC_EVERY_S, so
that a power failure loses so much at most. Files of 8 MiB (`00000001.journal` …) are removed, the oldest
first, once every attempt that began in them is settled in the database.

A record: kind, length of the text, tokens, attempt's number, held, spent (32 bytes), the text, a CRC-32 of
all of it. A record that was cut off or damaged is skipped, and the next one is looked for by its kind.
"""

import asyncio
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.accounts.settlement import AttemptEnd, AttemptNote, Settlement
from appliance.base.errors import Unavailable, write_remedy
from appliance.base.logs import get_logger

log = get_logger("accounts")
SYNC_EVERY_S = 0.1
SEGMENT_BYTES = 8 * 1024 * 1024
TIDY_BYTES = 256 * 1024  # a file in which everything is settled is replaced from this size on
SUFFIX = ".journal"
_HEAD = struct.Struct("<HHIQqq")
_CRC = struct.Struct("<I")
_NUMBERS = struct.Struct("<Q")
_MARK = 0xA500  # the upper byte of each kind, by which the next record is found after damage
_BEGIN, _PROGRESS, _END, _LEASE, _SETTLED, _CONTACT = (_MARK | kind for kind in range(1, 7))
_KINDS = range(_BEGIN, _CONTACT + 1)
_MAX_TEXT = 0xFFFF
_MAX_TOKENS = 0xFFFFFFFF
_SETTLED_AT_ONCE = _MAX_TEXT // _NUMBERS.size
_pack, _crc32, _pack_crc = _HEAD.pack, zlib.crc32, _CRC.pack
_encode = msgspec.json.Encoder().encode
_decode_note = msgspec.json.Decoder(AttemptNote).decode
_decode_end = msgspec.json.Decoder(AttemptEnd).decode
StructT = TypeVar("StructT")


class JournalFull(Unavailable):
    """No further attempt can be noted: too much waits for the database, or the disk is full."""

    default_code = "store_unavailable"


@dataclass(slots=True)
class RecoveredAttempt:
    """An attempt that was in the journal and is not known to be settled.

    Attributes:
        number: Its number in the journal.
        note: What was known when it began.
        held_musd: The most that it can be charged.
        spent_musd: What it had cost when that was last noted.
        tokens: Of the response, by then.
        end: How it ended; None = the process ended first.
    """

    number: int
    note: AttemptNote
    held_musd: int
    spent_musd: int = 0
    tokens: int = 0
    end: AttemptEnd | None = None

    def settlement(self) -> Settlement:
        """Return what is to be settled: what was last noted, where the process ended first."""
        if self.end is not None:
            return Settlement(self.number, self.note, self.end)
        spent = max(0, min(self.spent_musd, self.held_musd))
        read = self.note.prompt_tokens if spent else 0
        return Settlement(
            self.number,
            self.note,
            AttemptEnd("journal", read=read, written=self.tokens, charged_musd=spent, cost_musd=spent),
        )


@dataclass(slots=True)
class JournalState:
    """What the files said when they were opened.

    Attributes:
        attempts: Those that are not known to be settled, by number.
        leases: Our leases, by wallet.
        reached_ms: When the database was last reached, epoch milliseconds; 0 = not known.
        damaged_bytes: That could not be read: a record that was being written, or damage.
        last_number: The highest number of an attempt.
        began_in: The file in which each attempt began.
    """

    attempts: dict[int, RecoveredAttempt] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    reached_ms: int = 0
    damaged_bytes: int = 0
    last_number: int = 0
    began_in: dict[int, int] = field(default_factory=dict)


class Journal:
    """The journal of this process; one process at a time uses a folder.

    Args:
        folder: Where its files are; made where it is missing, for its owner alone.
        max_bytes: Of all files together, about; above it no attempt can begin.
        segment_bytes: A file that has become so large is followed by the next.

    Raises:
        OSError: The folder cannot be used, or another process uses it (BlockingIOError).
    """

    def __init__(self, folder: Path, *, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        """Read what is there, and begin a new file: nothing is written behind a record that was cut off."""
        self._sizes = {
            int(path.stem): path.stat().st_size
            for path in sorted(self._folder.glob(f"*{SUFFIX}"))
            if path.stem.isdigit()
        }
        self.state = state = JournalState()
        for segment in sorted(self._sizes):
            _read_into(state, segment, self._path(segment).read_bytes())
        if state.damaged_bytes:
            log.warning("journal_damaged", bytes=state.damaged_bytes, folder=str(self._folder))
        self._leases = dict(state.leases)
        self._unsettled = {number: state.began_in[number] for number in state.attempts}
        self._open_counts = dict.fromkeys(self._sizes, 0)
        for segment in self._unsettled.values():
            self._open_counts[segment] += 1
        self._number = state.last_number
        self._segment = max(self._sizes, default=0)
        self._total_bytes = sum(self._sizes.values())
        self._fd = -1
        self._full_fds: list[int] = []
        self._is_dirty = False
        self._is_folder_dirty = True
        self._next_segment()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return self._total_bytes

    @property
    def unsettled_count(self) -> int:
        """Attempts that run, or wait for the database."""
        return len(self._unsettled)

    # ---- records

    def begin(self, note: AttemptNote, held_musd: int) -> int:
        """Note that an attempt begins.

        Returns:
            Its number.

        Raises:
            JournalFull: It cannot be noted.
        """
        if self._total_bytes > self._max_bytes:
            raise JournalFull(
                "Too many charges wait for the database of accounts (JOURNAL_MAX_MB). Try again later.",
                retry_after_s=10.0,
            )
        self._number = number = self._number + 1
        try:
            self._write(_BEGIN, number, held_musd, 0, 0, _encode(note))
        except OSError as error:
            raise JournalFull(
                f"Charges cannot be noted: {error.strerror}. {write_remedy(error)}", retry_after_s=10.0
            ) from None
        self._unsettled[number] = self._segment
        self._open_counts[self._segment] += 1
        return number

    def progress(self, number: int, tokens: int, held_musd: int, spent_musd: int) -> None:
        """Note how far an attempt is: if the process is killed, this is what it pays."""
        self._note(_PROGRESS, number, held_musd, spent_musd, min(tokens, _MAX_TOKENS))

    def end(self, number: int, end: AttemptEnd, held_musd: int) -> None:
        """Note how an attempt ended."""
        self._note(_END, number, held_musd, end.charged_musd, 0, _encode(end))

    def lease(self, wallet_id: str, musd: int) -> None:
        """Note the size of our lease of a wallet; 0 = it is given back."""
        if musd:
            self._leases[wallet_id] = musd
        else:
            self._leases.pop(wallet_id, None)
        self._note(_LEASE, 0, musd, 0, 0, wallet_id.encode())

    def contact(self, at_ms: int) -> None:
        """Note that the database was reached, epoch milliseconds."""
        self.state.reached_ms = at_ms
        self._note(_CONTACT, 0, at_ms, 0)

    def settled(self, numbers: Sequence[int]) -> None:
        """Note that attempts are settled in the database, and remove the files that are needed no more.

        Note the leases that the settlement changed before.
        """
        for start in range(0, len(numbers), _SETTLED_AT_ONCE):
            part = numbers[start : start + _SETTLED_AT_ONCE]
            self._note(_SETTLED, 0, 0, 0, 0, struct.pack(f"<{len(part)}Q", *part))
        for number in numbers:
            segment = self._unsettled.pop(number, None)
            if segment is not None:
                self._open_counts[segment] -= 1
        if not self._unsettled and self._sizes[self._segment] > TIDY_BYTES:
            self._try_next_segment()
        self._remove_settled()

    def _note(
        self, kind: int, number: int, held: int, spent: int, tokens: int = 0, text: bytes = b""
    ) -> None:
        """Write a record; where that fails, what happens goes on: only a kill meanwhile would lose it."""
        try:
            self._write(kind, number, held, spent, tokens, text)
        except OSError as error:
            log.error("journal_not_written", reason=error.strerror, folder=str(self._folder))

    def _write(self, kind: int, number: int, held: int, spent: int, tokens: int, text: bytes) -> None:
        record = _pack(kind, len(text), tokens, number, held, spent) + text
        record += _pack_crc(_crc32(record))
        size = self._sizes[self._segment]
        if size >= self._segment_bytes:
            self._next_segment()
            size = self._sizes[self._segment]
        written = os.write(self._fd, record)
        if written != len(record):
            os.ftruncate(self._fd, size)
            os.lseek(self._fd, size, os.SEEK_SET)
            raise OSError(28, "No space left on device")
        self._sizes[self._segment] = size + written
        self._total_bytes += written
        self._is_dirty = True

    # ---- files

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:08d}{SUFFIX}"

    def _next_segment(self) -> None:
        """Begin a file; it says first which leases we have, since the file that said it may go."""
        segment = self._segment + 1
        fd = os.open(self._path(segment), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if self._fd >= 0:
            self._full_fds.append(self._fd)
        self._fd, self._segment = fd, segment
        self._sizes[segment] = 0
        self._open_counts[segment] = 0
        self._is_folder_dirty = True
        for wallet_id, musd in self._leases.items():
            self._write(_LEASE, 0, musd, 0, 0, wallet_id.encode())
        if self._leases and self.state.reached_ms:
            self._write(_CONTACT, 0, self.state.reached_ms, 0, 0, b"")

    def _try_next_segment(self) -> None:
        try:
            self._next_segment()
        except OSError as error:
            log.error("journal_not_written", reason=error.strerror, folder=str(self._folder))

    def _remove_settled(self) -> None:
        for segment in sorted(self._sizes):
            if segment == self._segment or self._open_counts[segment]:
                return
            try:
                self._path(segment).unlink(missing_ok=True)
            except OSError as error:
                log.error("journal_not_removed", reason=error.strerror, folder=str(self._folder))
                return
            self._total_bytes -= self._sizes.pop(segment)
            del self._open_counts[segment]

    # ---- the disk

    def sync(self) -> None:
        """Wait until everything that was written is on the disk (blocking; safe in a thread)."""
        full, self._full_fds = self._full_fds, []
        is_dirty, self._is_dirty = self._is_dirty, False
        for fd in full:
            os.fdatasync(fd)
            os.close(fd)
        if is_dirty:
            os.fdatasync(self._fd)
        if self._is_folder_dirty:
            self._is_folder_dirty = False
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    async def keep_synced(self) -> None:
        """Sync every SYNC_EVERY_S, without end."""
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            if not (self._is_dirty or self._full_fds or self._is_folder_dirty):
                continue
            try:
                await asyncio.to_thread(self.sync)
            except OSError as error:
                self._is_dirty = True
                log.error("journal_not_synced", reason=error.strerror, folder=str(self._folder))

    def close(self) -> None:
        """Sync and close; files stay where something is not settled (blocking)."""
        try:
            self.sync()
            if not self._unsettled and not self._leases:
                for segment in self._sizes:
                    self._path(segment).unlink(missing_ok=True)
        finally:
            os.close(self._fd)
            os.close(self._lock)


# ---- reading


def _records(data: bytes) -> Iterator[tuple[int, int, int, int, int, bytes] | int]:
    """Give each whole record: kind, tokens, number, held, spent, text; or how many bytes were skipped."""
    place, end = 0, len(data)
    while place < end:
        length = _length_at(data, place)
        if length:
            kind, text_length, tokens, number, held, spent = _HEAD.unpack_from(data, place)
            text = data[place + _HEAD.size : place + _HEAD.size + text_length]
            yield kind, tokens, number, held, spent, text
            place += length
            continue
        start, place = place, _next_record(data, place + 1)
        yield place - start


def _length_at(data: bytes, place: int) -> int:
    """Return the length of the record at `place`; 0 = there is no whole one."""
    if place + _HEAD.size + _CRC.size > len(data):
        return 0
    kind, text_length = struct.unpack_from("<HH", data, place)
    body = place + _HEAD.size + text_length
    if kind not in _KINDS or body + _CRC.size > len(data):
        return 0
    is_whole = _CRC.unpack_from(data, body)[0] == zlib.crc32(data[place:body])
    return body + _CRC.size - place if is_whole else 0


def _next_record(data: bytes, place: int) -> int:
    """Return where the next whole record begins; the end of `data` where there is none."""
    while (mark := data.find(_MARK >> 8, place + 1)) >= 0:
        if _length_at(data, mark - 1):
            return mark - 1
        place = mark
    return len(data)


def _read_into(state: JournalState, segment: int, data: bytes) -> None:
    for record in _records(data):
        if isinstance(record, int):
            state.damaged_bytes += record
            continue
        kind, tokens, number, held, spent, text = record
        state.last_number = max(state.last_number, number)
        try:
            _apply(state, segment, kind, tokens, number, held, spent, text)
        except (msgspec.MsgspecError, UnicodeDecodeError, struct.error):  # of another version
            state.damaged_bytes += len(text)


def _apply(
    state: JournalState, segment: int, kind: int, tokens: int, number: int, held: int, spent: int, text: bytes
) -> None:
    attempt = state.attempts.get(number)
    if kind == _BEGIN:
        state.attempts[number] = RecoveredAttempt(number, _decode_note(text), held)
        state.began_in[number] = segment
    elif kind == _PROGRESS and attempt is not None:
        attempt.tokens, attempt.held_musd, attempt.spent_musd = tokens, held, spent
    elif kind == _END and attempt is not None:
        attempt.end, attempt.held_musd, attempt.spent_musd = _decode_end(text), held, spent
    elif kind == _LEASE:
        state.leases[text.decode()] = held
        if not held:
            del state.leases[text.decode()]
    elif kind == _SETTLED:
        for (settled,) in _NUMBERS.iter_unpack(text):
            state.attempts.pop(settled, None)
            state.last_number = max(state.last_number, settled)
    elif kind == _CONTACT:
        state.reached_ms = max(state.reached_ms, held)
