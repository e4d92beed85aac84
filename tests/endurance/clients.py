"""The clients: raw HTTP over sockets, each in a manner of its own, also those that leave or do not read."""

import asyncio
import json
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.endurance import kinds
from tests.endurance.kinds import INTERNAL, MODELS, Kind, Reading
from tests.endurance.ledger import Entry, Ledger
from tests.endurance.standin import BEYOND, HUGE, reset, text_of

PATIENCE_S = 30.0  # longer than any limit that the appliance has in this run
CLIENT_KEY, OPERATOR_KEY = "endurance-client-key", "endurance-operator-key"

# How a client behaves; the numbers are shares.
MANNERS = {
    "plain": 700,
    "fresh": 120,  # on a connection of its own
    "leave_before_answer": 45,
    "leave_in_answer": 45,
    "reset": 20,  # leaves at once, with a reset
    "half_close": 25,  # sends no more after its request
    "slow_reader": 10,
    "never_reads": 2,
    "cut_head": 8,
    "cut_body": 8,
    "stalled_head": 3,  # sends no more in the middle, and waits for what happens
    "stalled_body": 3,
    "bad_head": 8,
    "pipelined": 20,
    "chunked": 20,
    "expect": 10,
    "trickled": 8,
}
LEAVES = {"leave_before_answer", "leave_in_answer", "reset", "half_close", "never_reads", "cut_body"}
BAD_HEADS = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nBad Name: x\r\n\r\n{}",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    b"NONSENSE\r\n\r\n",
    b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 40_000 + b"\r\n\r\n",
)


class Left(Exception):
    """The client leaves now."""


@dataclass
class Answer:
    """One response as it came.

    Attributes:
        status: 0 = no whole head came.
        fields: By lower-case name.
        body: Without its framing.
        is_whole: Its framing is complete.
        raw_bytes: Bytes that came, head included.
    """

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False
    raw_bytes: int = 0

    @property
    def may_stay(self) -> bool:
        return self.is_whole and self.fields.get("connection", "").lower() != "close"


class ClientSocket:
    """One connection to the appliance."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, *, receive_bytes: int = 0) -> "ClientSocket":
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=2**16))

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        reset(self.writer)

    async def read(
        self,
        *,
        on_body: Callable[[int], None] = lambda size: None,
        pause_s: float = 0.0,
        is_head: bool = False,
    ) -> Answer:
        """Read one response, whatever of it comes. `on_body` gets how much of the body there is."""
        answer = Answer()
        try:
            await self._read_head(answer)
            while answer.status == 100:
                await self._read_head(answer)
            if is_head or answer.status in {204, 304}:
                answer.is_whole = True
            elif answer.fields.get("transfer-encoding") == "chunked":
                await self._read_chunks(answer, on_body, pause_s)
            else:
                await self._read_counted(answer, on_body, pause_s)
        except (asyncio.IncompleteReadError, OSError):
            pass
        return answer

    async def _read_head(self, answer: Answer) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        answer.raw_bytes += len(head)
        lines = head.decode("latin-1").split("\r\n")
        answer.status = int(lines[0].split(" ")[1])
        answer.fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }

    async def _read_chunks(self, answer: Answer, on_body: Callable[[int], None], pause_s: float) -> None:
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            left = size
            while left:
                piece = await self.reader.read(min(left, 65_536))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                answer.body += piece
                left -= len(piece)
                on_body(len(answer.body))
                if pause_s:
                    await asyncio.sleep(pause_s)
            await self.reader.readexactly(2)
            if not size:
                answer.is_whole = True
                return

    async def _read_counted(self, answer: Answer, on_body: Callable[[int], None], pause_s: float) -> None:
        length = int(answer.fields.get("content-length", "-1"))
        pieces: list[bytes] = []
        have = 0
        try:
            while have != length:
                piece = await self.reader.read(65_536 if length < 0 else min(65_536, length - have))
                if not piece:
                    break
                pieces.append(piece)
                have += len(piece)
                on_body(have)
                if pause_s:
                    await asyncio.sleep(pause_s)
            answer.is_whole = have == length or (length < 0 and "connection" in answer.fields)
        finally:
            answer.body = b"".join(pieces)


class Client:
    """One client: it sends one request after the other, over a connection that it keeps where it may.

    Args:
        numbers: Of its requests; with the seed they decide what each of them is.
        port: Of the appliance.
    """

    def __init__(self, numbers: range, ledger: Ledger, *, port: int, seed: int) -> None:
        self._ledger = ledger
        self._port = port
        self._numbers = iter(numbers)
        self._seed = seed
        self._rng = random.Random()
        self._kept: ClientSocket | None = None

    async def run(self) -> None:
        """Send its requests."""
        while (entry := self._next()) is not None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._send(entry)
            except TimeoutError:
                entry.fail(f"no answer within {PATIENCE_S:g} s")
                self._drop(is_reset=True)
            self._ledger.end(entry)
        self._drop()

    def _next(self, manner: str = "") -> Entry | None:
        number = next(self._numbers, None)
        if number is None:
            return None
        self._rng = rng = random.Random(f"request {self._seed} {number}")
        kind = kinds.choose(rng)
        manner = manner or rng.choices(list(MANNERS), list(MANNERS.values()))[0]
        letter = "a"
        if manner == "never_reads":
            kind, letter = kinds.BY_NAME["chat_stream"], HUGE
        elif manner == "slow_reader" or rng.random() < 0.002:
            letter = HUGE
        elif kind.reaches_servers and rng.random() < 0.0003:
            letter = BEYOND
        mark = f"m{number:06}-{rng.getrandbits(32):08x}{letter}"
        given = f"e-{number}" if manner in LEAVES or rng.random() < 0.7 else ""
        return self._ledger.begin(number, mark, kind, manner, rng.choice(MODELS), given)

    # ---- sending

    def _render(self, entry: Entry, framing: str = "length") -> tuple[bytes, bytes]:
        """Render head and body."""
        kind = entry.kind
        body = b""
        if kind.method == "POST":
            built = kind.build(entry.model, entry.mark)
            body = built.encode() if isinstance(built, str) else json.dumps(built).encode()
        key = {"good": CLIENT_KEY, "wrong": "wrong-" + CLIENT_KEY}.get(kind.key, "")
        lines = [f"{kind.method} {kind.path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        if key:
            lines.append(
                f"x-api-key: {key}" if kind.dialect == "anthropic" else f"Authorization: Bearer {key}"
            )
        if entry.id:
            lines.append(f"X-Request-Id: {entry.id}")
        if framing == "chunked" and body:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p) + b"0\r\n\r\n"
        elif body:
            lines.append(f"Content-Length: {len(body)}")
        if framing == "expect":
            lines.append("Expect: 100-continue")
        return ("\r\n".join(lines) + "\r\n\r\n").encode(), body

    async def _connect(self, *, is_fresh: bool = False, receive_bytes: int = 0) -> ClientSocket:
        if is_fresh or receive_bytes:
            return await ClientSocket.open(self._port, receive_bytes=receive_bytes)
        if self._kept is None:
            self._kept = await ClientSocket.open(self._port)
        kept, self._kept = self._kept, None
        return kept

    def _drop(self, *, is_reset: bool = False) -> None:
        if self._kept is not None:
            self._kept.reset() if is_reset else self._kept.close()
            self._kept = None

    async def _send(self, entry: Entry) -> None:
        manner = entry.manner
        way = getattr(self, f"_{manner}", self._plain)
        is_fresh = manner not in {
            "plain",
            "pipelined",
            "chunked",
            "expect",
            "trickled",
            "leave_before_answer",
        }
        buffer = {"slow_reader": 32_768, "never_reads": 4_096}.get(manner, 0)
        connection = await self._connect(is_fresh=is_fresh, receive_bytes=buffer)
        stays = False
        try:
            stays = await way(connection, entry)
        except OSError as error:  # the appliance closed while we sent
            entry.note_closed(error)
        finally:
            if stays and self._kept is None:
                self._kept = connection
            else:
                connection.close()

    async def _plain(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body)
        return await self._receive(connection, entry)

    async def _chunked(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry, "chunked")
        connection.writer.write(head)
        await asyncio.sleep(0.002)
        connection.writer.write(body)
        return await self._receive(connection, entry)

    async def _expect(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry, "expect")
        connection.writer.write(head)
        await asyncio.sleep(0.002)
        connection.writer.write(body)
        return await self._receive(connection, entry)

    async def _trickled(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        data = head + body
        at = 0
        while at < len(data):
            size = self._rng.randint(1, 60)
            connection.writer.write(data[at : at + size])
            at += size
            await asyncio.sleep(0)
        return await self._receive(connection, entry)

    async def _slow_reader(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body)
        return await self._receive(connection, entry, pause_s=0.003)

    async def _pipelined(self, connection: ClientSocket, entry: Entry) -> bool:
        """Two requests in one packet; the second one is asked for when the first has its answer."""
        second = self._next("plain")
        data = b"".join(self._render(entry))
        if second is not None:
            data += b"".join(self._render(second))
        connection.writer.write(data)
        stays = await self._receive(connection, entry)
        if second is None:
            return stays
        if not stays:  # closed after the first answer: the second was never read
            second.outcome, second.lines = "unread: closed after the first", "at most one"
        else:
            stays = await self._receive(connection, second)
        self._ledger.end(second)
        return stays

    async def _receive(self, connection: ClientSocket, entry: Entry, *, pause_s: float = 0.0) -> bool:
        answer = await connection.read(pause_s=pause_s)
        check(entry, answer)
        return answer.may_stay

    # ---- leaving

    async def _leave_before_answer(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body)
        await asyncio.sleep(self._rng.choice([0, 0, 0.001, 0.01, 0.05]))
        entry.outcome = "left before the answer"
        return False

    async def _reset(self, connection: ClientSocket, entry: Entry) -> bool:
        """What was sent may be lost with the reset, so the appliance may never have read it."""
        head, body = self._render(entry)
        connection.writer.write(head + body)
        await asyncio.sleep(self._rng.choice([0, 0.001, 0.01, 0.03]))
        entry.outcome, entry.lines = "left by a reset", "at most one"
        connection.reset()
        return False

    async def _leave_in_answer(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body)
        limit = self._rng.randint(1, 2000)

        def leave(size: int) -> None:
            if size >= limit:
                raise Left

        try:
            answer = await connection.read(on_body=leave)
        except Left:
            entry.outcome = "left in the answer"
            return False
        check(entry, answer)
        return answer.may_stay

    async def _half_close(self, connection: ClientSocket, entry: Entry) -> bool:
        """A client that closes its side is taken to have left; what comes all the same must be its own."""
        head, body = self._render(entry)
        connection.writer.write(head + body)
        connection.writer.write_eof()
        answer = await connection.read()
        entry.note_marks(answer.body)
        entry.outcome = "closed its side"
        return False

    async def _never_reads(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body)
        await asyncio.sleep(4.0)  # longer than WRITE_TIMEOUT_S, also where the ticker comes late
        entry.outcome = "never read"
        return False

    # ---- what is no request

    async def _cut_head(self, connection: ClientSocket, entry: Entry) -> bool:
        head, _ = self._render(entry)
        connection.writer.write(head[: self._rng.randrange(1, len(head) - 4)])
        await asyncio.sleep(self._rng.choice([0, 0.01]))
        entry.outcome, entry.lines = "left in the head", "none"
        return False

    async def _cut_body(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        connection.writer.write(head + body[: max(0, len(body) - 5)])
        await asyncio.sleep(self._rng.choice([0, 0.01]))
        entry.outcome, entry.lines = "left in the body", "at most one"
        return False

    async def _stalled_head(self, connection: ClientSocket, entry: Entry) -> bool:
        head, _ = self._render(entry)
        connection.writer.write(head[: self._rng.randrange(1, len(head) - 4)])
        return await self._await_timeout(connection, entry, "head")

    async def _stalled_body(self, connection: ClientSocket, entry: Entry) -> bool:
        head, body = self._render(entry)
        if not body:
            return await self._cut_head(connection, entry)
        connection.writer.write(head + body[:-5])
        return await self._await_timeout(connection, entry, "body")

    async def _await_timeout(self, connection: ClientSocket, entry: Entry, part: str) -> bool:
        """Wait until the appliance gives up on a head (HEADER_TIMEOUT_S) or a body (BODY_TIMEOUT_S)."""
        answer = await connection.read()
        entry.id = answer.fields.get("x-request-id", "")
        entry.status = answer.status
        entry.outcome = f"stalled {part}: {answer.status or 'closed'}"
        entry.lines = "one" if answer.status else "at most one"
        refusals = {408} | (set(entry.kind.statuses) if part == "body" else set())
        if answer.status and (answer.status not in refusals or not entry.id):
            entry.fail(f"a stalled {part} got {answer.status}: {answer.body[:200]!r}")
        return False

    async def _bad_head(self, connection: ClientSocket, entry: Entry) -> bool:
        connection.writer.write(self._rng.choice(BAD_HEADS))
        answer = await connection.read()
        entry.id = answer.fields.get("x-request-id", "")
        entry.status = answer.status
        entry.outcome, entry.lines = f"malformed: {answer.status}", "at most one"
        if answer.status not in {400, 431} or not entry.id:
            entry.fail(f"a malformed head got {answer.status}")
        return False


def check(entry: Entry, answer: Answer) -> None:
    """Compare an answer that was read to its end with what is right."""
    entry.status, entry.body_bytes = answer.status, len(answer.body)
    entry.note_marks(answer.body)
    if not answer.status:
        entry.fail("closed without an answer")
        return
    given, entry.id = entry.id, answer.fields.get("x-request-id", "")
    if not entry.id or (given and given != entry.id):
        entry.fail(f"x-request-id is {entry.id!r}, sent was {given!r}")
        entry.id = given or entry.id
    if not answer.is_whole:
        entry.outcome = "cut off as the server's was"
        if not entry.kind.may_be_cut:
            entry.fail(
                f"the answer of status {answer.status} ends within its framing: {answer.body[-200:]!r}"
            )
    elif answer.status == 200:
        _check_content(entry, answer)
    else:
        _check_refusal(entry, answer)


def _check_content(entry: Entry, answer: Answer) -> None:
    kind = entry.kind
    entry.outcome = "complete"
    if kind.read is None or not kind.reaches_servers:
        if kind.reaches_servers or kind.method == "POST":
            entry.fail(f"{kind.name} got 200")
        return
    if kind.may_be_cut and b"choices" not in answer.body:
        entry.outcome = "passed on as it was"
        return
    try:
        reading = kind.read(answer.body)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if kind.may_be_cut:
            entry.outcome = "passed on as it was"
            return
        entry.fail(f"unreadable: {error!r} in {answer.body[-300:]!r}")
        return
    _check_text(entry, kind, reading, answer)


def _check_text(entry: Entry, kind: Kind, reading: Reading, answer: Answer) -> None:
    right = kinds.right_text(kind, entry.mark, text_of(entry.mark))
    if reading.is_complete:
        if reading.text != right and not kind.may_be_cut:
            entry.fail(f"the text is {reading.text[:300]!r}, right is {right[:300]!r}")
    elif reading.error:
        entry.outcome = "error event"
        if INTERNAL in reading.error:
            entry.fail(f"an internal error: {reading.error}")
        if not right.startswith(reading.text):
            entry.fail(f"before its error: {reading.text[:300]!r}, right is {right[:300]!r}")
    else:
        entry.fail(f"neither complete nor an error: {answer.body[-300:]!r}")


def _check_refusal(entry: Entry, answer: Answer) -> None:
    kind = entry.kind
    entry.outcome = f"status {answer.status}"
    if answer.status not in kind.statuses or INTERNAL.encode() in answer.body:
        entry.fail(f"status {answer.status}: {answer.body[:300]!r}")
    elif not has_shape(kind, answer):
        entry.fail(f"status {answer.status} without the error of its dialect: {answer.body[:300]!r}")
    elif answer.status == 503 and b" is ready" in answer.body:  # then it should have got the request
        entry.fail(f"status 503 though a server is ready: {answer.body[:300]!r}")


def has_shape(kind: Kind, answer: Answer) -> bool:
    return kinds.has_error_shape(kind.dialect, answer.body)
