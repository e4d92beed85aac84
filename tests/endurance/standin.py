"""A server with OpenAI's API that misbehaves by seed, and records each request by the mark that it carries.

Every request of the run carries a mark of its own, and a right answer repeats it in each piece. How a server treats a
request depends on the seed, the mark, the server's name and how often it has seen that mark, not on the time: the same
seed gives the same faults.
"""

import asyncio
import json
import random
import re
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MARK = re.compile(r"m\d{6}-[0-9a-f]{8}[a-z]")
HUGE, BEYOND = "h", "b"  # the last letter of a mark: a large answer, an answer beyond the limits
BEYOND_EVENT_BYTES = 17 * 1024 * 1024  # the appliance reads events of 16 MiB at most
GOOD_SHARE = 0.62
PIECE = b"%x\r\n%b\r\n"

# Faults before the response has begun, for whole and streamed answers alike; the numbers are shares.
EARLY_FAULTS = {
    "status_500": 6,
    "plain_500": 4,
    "status_502": 3,
    "status_503": 4,
    "status_503_after": 2,
    "status_429": 2,
    "status_429_after": 2,
    "status_429_date": 1,
    "status_400": 3,
    "status_401": 1,
    "status_404": 2,
    "redirect": 1,
    "close": 5,
    "reset": 4,
    "cut_head": 4,
    "garbage_head": 3,
    "endless_head": 1,
    "silent": 1,
    "slow": 6,
    "trickle_head": 2,
    "web_page": 3,
    "error_200": 3,
    "other_status_line": 1,
}
WHOLE_FAULTS = {"cut_body": 5, "plain_type": 3, "no_length": 4, "chunked": 4, "odd_types": 3, "stall_body": 1}
STREAM_FAULTS = {
    "cut_early": 4,
    "cut_late": 5,
    "reset_late": 4,
    "end_late": 4,
    "error_early": 3,
    "error_late": 4,
    "garbage_late": 3,
    "no_done": 4,
    "stall_late": 1,
    "drip": 4,
    "one_piece": 3,
    "plain_type": 3,
    "odd_packets": 6,
    "odd_lines": 4,
    "empty_events": 3,
    "bad_chunk": 2,
}
# What is sent although the request went well; everything else is a fault.
HARMLESS = {
    "good",
    "slow",
    "plain_type",
    "no_length",
    "chunked",
    "no_done",
    "drip",
    "one_piece",
    "odd_packets",
    "odd_lines",
    "empty_events",
}


def words_of(mark: str) -> list[str]:
    """The pieces of the one right answer to the request with this mark; each holds the mark."""
    rng = random.Random(f"words {mark}")
    filler = "x" * 4096 if mark.endswith(HUGE) else ""
    count = rng.randint(60, 200) if mark.endswith(HUGE) else rng.randint(2, 9)
    tail = ["", " é", ' "quoted"', " 👩‍👩‍👧", "\n", "\\"]
    return [f"{mark}/{number}{rng.choice(tail)}{filler} " for number in range(count)]


def text_of(mark: str) -> str:
    return "".join(words_of(mark))


def vector_of(mark: str) -> list[float]:
    """An embedding from which the request's number can be read, whatever its length."""
    return [float(int(mark[1:7])), 1.0]


@dataclass
class Journal:
    """What all stand-ins of a run were asked, by mark.

    Attributes:
        asked: Mark → (server, what it did), in the order of arrival.
        unread: Requests of which the end never came.
        others: Requests without a mark, such as probes, by path.
    """

    asked: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    unread: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(map(len, self.asked.values()))


class StandIn:
    """One server. `stop` is a kill: it stops listening and resets what is open; `start` uses the same port again.

    Args:
        name: Its name in the journal.
        base: Before `/chat/completions`.
        models: What it lists.
    """

    def __init__(
        self, name: str, journal: Journal, *, seed: int, base: str = "/v1", models: Sequence[str] = ()
    ) -> None:
        self.name, self.base, self.models = name, base, models
        self.journal = journal
        self.seed = seed
        self.port = 0
        self.is_quiet = False  # connections end with their response, so that none stays open
        self.is_well = False  # no more faults
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen. The port stays bound while it does not listen: connections are refused, and no other process can take it."""
        if self._reserved is None:
            self._reserved = _bound(0)
            self.port = self._reserved.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=_bound(self.port), limit=2**22)

    async def close(self) -> None:
        """Stop for good."""
        await self.stop()
        if self._reserved is not None:
            self._reserved.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        """Reset every open connection."""
        for task in self._tasks:
            task.cancel()
        for writer in list(self._writers):
            reset(writer)

    # ---- reading

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._answer_next(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the appliance left
        except asyncio.CancelledError:
            pass  # killed
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _answer_next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
        }
        try:
            body = await self._read_body(reader, fields)
        except (asyncio.IncompleteReadError, OSError):
            self.journal.unread[self.name] += 1
            raise
        found = MARK.search(body.decode("utf-8", "replace"))
        if found is None:
            self.journal.others[f"{method} {target}"] += 1
            return await self._answer_query(writer, method, target)
        return await self._answer_marked(writer, target, body, found[0])

    async def _read_body(self, reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding", "").lower() != "chunked":
            return await reader.readexactly(int(fields.get("content-length", "0")))
        body = b""
        while True:
            size = int((await reader.readuntil(b"\r\n")).strip() or b"0", 16)
            piece = await reader.readexactly(size + 2)
            if not size:
                return body
            body += piece[:-2]

    # ---- answering

    async def _answer_query(self, writer: asyncio.StreamWriter, method: str, target: str) -> bool:
        path = target.partition("?")[0]
        if path == "/health":
            return self._send(writer, 200, {"status": "ok"})
        if path == "/v1/models":
            rows = [
                {"id": name, "object": "model", "created": 1, "owned_by": "llamacpp"} for name in self.models
            ]
            return self._send(writer, 200, {"object": "list", "data": rows})
        if path == "/props":
            return self._send(
                writer,
                200,
                {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 8, "model_path": "m.gguf"},
            )
        if path == "/metrics":
            return self._send(
                writer, 200, b"# HELP x y\nllamacpp:requests_processing 0\n", content_type="text/plain"
            )
        return self._send(writer, 404, {"error": {"message": f"no {path}", "code": 404}})

    async def _answer_marked(self, writer: asyncio.StreamWriter, target: str, body: bytes, mark: str) -> bool:
        value = json.loads(body)
        is_stream = bool(value.get("stream"))
        past = self.journal.asked[mark]
        seen = sum(1 for name, _ in past if name == self.name)
        rng = random.Random(f"{self.seed} {mark} {self.name} {seen}")
        how = self._choose(rng, mark, is_stream=is_stream)
        past.append((self.name, how))
        path = target.partition("?")[0].removeprefix(self.base)
        if how in EARLY_FAULTS:
            return await self._fail_early(writer, how, rng, path, value, mark)
        if is_stream and how != "one_piece":
            return await self._stream(writer, how, rng, path, value, mark)
        return await self._whole(writer, how, rng, path, value, mark)

    def _choose(self, rng: random.Random, mark: str, *, is_stream: bool) -> str:
        if mark.endswith(BEYOND):
            return "beyond"
        if self.is_well or rng.random() < GOOD_SHARE:
            return "good"
        faults = EARLY_FAULTS | (STREAM_FAULTS if is_stream else WHOLE_FAULTS)
        return rng.choices(list(faults), list(faults.values()))[0]

    def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: Any,
        *,
        content_type: str = "application/json",
        fields: str = "",
    ) -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        stays = not self.is_quiet
        connection = "" if stays else "Connection: close\r\n"
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n{fields}"
            f"{connection}\r\n".encode()
            + data
        )
        return stays

    async def _fail_early(
        self, writer: asyncio.StreamWriter, how: str, rng: random.Random, path: str, value: Any, mark: str
    ) -> bool:
        if how.startswith("status_"):
            status = int(how[7:10])
            fields = {
                "status_503_after": "Retry-After: 1\r\n",
                "status_429_after": "Retry-After: 0.2\r\n",
                "status_429_date": "Date: Mon, 30 Nov 2026 10:00:00 GMT\r\n"
                "Retry-After: Mon, 30 Nov 2026 10:00:01 GMT\r\n",
            }.get(how, "")
            return self._send(
                writer, status, {"error": {"message": f"on purpose {mark}", "code": status}}, fields=fields
            )
        if how == "plain_500":
            return self._send(writer, 500, b"Internal Server Error", content_type="text/plain")
        if how == "redirect":
            return self._send(writer, 302, b"", fields="Location: http://127.0.0.1:1/\r\n")
        if how == "web_page":
            return self._send(writer, 200, b"<html>gateway</html>", content_type="text/html")
        if how == "error_200":
            return self._send(
                writer, 200, {"error": {"message": f"quota spent {mark}", "type": "insufficient_quota"}}
            )
        if how == "other_status_line":
            writer.write(b"HTTP/1.1 299\r\nContent-Length: 2\r\n\r\n{}")
            return True
        if how in {"slow", "silent"}:
            await asyncio.sleep(rng.uniform(0.05, 0.4) if how == "slow" else 3.0)
            if value.get("stream"):
                return await self._stream(writer, "good", rng, path, value, mark)
            return await self._whole(writer, "good", rng, path, value, mark)
        if how == "reset":
            reset(writer)
        elif how == "cut_head":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: applica")
        elif how == "garbage_head":
            writer.write(rng.randbytes(40) + b"\r\n\r\n" + rng.randbytes(40))
        elif how == "endless_head":
            writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 80_000)
        elif how == "trickle_head":
            for byte in b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n":
                say(writer, bytes([byte]))
                await asyncio.sleep(0.05)
        return False  # `close`, and what is left

    # ---- whole answers

    async def _whole(
        self, writer: asyncio.StreamWriter, how: str, rng: random.Random, path: str, value: Any, mark: str
    ) -> bool:
        answer = whole_answer(path, value, mark)
        if how == "odd_types":
            answer["choices"] = [{"index": "x", "message": {"role": "assistant", "content": 5}}]
        data = json.dumps(answer, ensure_ascii=rng.random() < 0.5).encode()
        if how == "beyond":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99000000\r\n\r\n"
            )
            writer.write(data)
            return False
        if how in {"cut_body", "stall_body"}:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
            writer.write(data[: rng.randrange(len(data))])
            await writer.drain()
            if how == "stall_body":
                await asyncio.sleep(3.0)
            return False
        if how == "no_length":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + data
            )
            return False
        if how == "chunked":
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            at = 0
            while at < len(data):
                size = rng.randint(1, len(data))
                say(writer, PIECE % (len(data[at : at + size]), data[at : at + size]))
                at += size
            writer.write(b"0\r\n\r\n")
            return True
        return self._send(
            writer, 200, data, content_type="text/plain" if how == "plain_type" else "application/json"
        )

    # ---- streams

    async def _stream(
        self, writer: asyncio.StreamWriter, how: str, rng: random.Random, path: str, value: Any, mark: str
    ) -> bool:
        """Send the events; `how` says what goes wrong, and at which event."""
        kind = "text/plain" if how == "plain_type" else "text/event-stream"
        stays = not self.is_quiet
        connection = "" if stays else "Connection: close\r\n"
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{connection}Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        events = stream_events(path, value, mark)
        if how == "beyond":
            events[1] = json.dumps({"x": "y" * BEYOND_EVENT_BYTES}).encode()
        is_chat = path == "/chat/completions"
        first = 1 if is_chat else 0
        late = rng.randint(first + 1, len(events) - 1)
        pause_s = 0.02 if how == "drip" else 0.0
        is_one_packet = rng.random() < 0.3
        for number, event in enumerate(events):
            if number == late and how in LATE:
                await writer.drain()
                return await LATE[how](writer)
            if number == first and how in {"cut_early", "error_early"}:
                if how == "error_early":
                    event = json.dumps({"error": {"message": f"on purpose {mark}", "code": 500}}).encode()
                    writer.write(PIECE % (len(event) + 8, b"data: " + event + b"\n\n"))
                    writer.write(b"0\r\n\r\n")
                    return True
                return False
            self._write_event(writer, how, rng, event)
            if not is_one_packet:
                await writer.drain()
                await asyncio.sleep(pause_s)
        if how != "no_done":
            writer.write(PIECE % (14, b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        return stays

    def _write_event(self, writer: asyncio.StreamWriter, how: str, rng: random.Random, event: bytes) -> None:
        line = b"data: " + event + b"\n\n"
        if how == "odd_lines":
            line = b": comment\r\n\r\nid: 5\r\ndata:" + event + b"\r\n\r\n"
        elif how == "empty_events":
            line = (
                rng.choice([b"data:\n\n", b"data: {}\n\n", b'event: ping\ndata: {"type": "ping"}\n\n']) + line
            )
        if how == "odd_packets":
            at = 0
            while at < len(line):
                size = rng.randint(1, 40)
                say(writer, PIECE % (len(line[at : at + size]), line[at : at + size]))
                at += size
        else:
            say(writer, PIECE % (len(line), line))


async def _cut(writer: asyncio.StreamWriter) -> bool:
    return False


async def _end(writer: asyncio.StreamWriter) -> bool:
    """End as if all were well, though the answer has not finished."""
    say(writer, b"0\r\n\r\n")
    return True


async def _reset(writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(0.01)  # else what was written may be lost with the connection
    reset(writer)
    return False


async def _error(writer: asyncio.StreamWriter) -> bool:
    event = b'data: {"error": {"message": "on purpose", "code": 500}}\n\n'
    writer.write(PIECE % (len(event), event) + b"0\r\n\r\n")
    return True


async def _garbage(writer: asyncio.StreamWriter) -> bool:
    event = b"data: {not json\n\n"
    writer.write(PIECE % (len(event), event) + b"0\r\n\r\n")
    return True


async def _stall(writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(3.0)
    return False


async def _bad_chunk(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"zz\r\nno chunk\r\n")
    return False


LATE = {
    "cut_late": _cut,
    "reset_late": _reset,
    "end_late": _end,
    "error_late": _error,
    "garbage_late": _garbage,
    "stall_late": _stall,
    "bad_chunk": _bad_chunk,
}


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port of loopback, and does not listen."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def say(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write, unless the appliance has left."""
    if writer.transport.is_closing():
        raise ConnectionResetError
    writer.write(data)


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def whole_answer(path: str, value: Any, mark: str) -> dict[str, Any]:
    """The right answer in one piece."""
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": len(words_of(mark)),
        "total_tokens": 5 + len(words_of(mark)),
    }
    head = {"id": "c", "created": 1, "model": value.get("model"), "usage": usage}
    if path == "/embeddings":
        row = {"object": "embedding", "index": 0, "embedding": vector_of(mark)}
        return {**head, "object": "list", "data": [row]}
    if path == "/chat/completions":
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text_of(mark)}}
    else:
        choice = {"text": text_of(mark)}
    kind = "chat.completion" if path == "/chat/completions" else "text_completion"
    return {**head, "object": kind, "choices": [{"index": 0, "finish_reason": "stop", **choice}]}


def stream_events(path: str, value: Any, mark: str) -> list[bytes]:
    """The right answer as events, without `[DONE]`."""
    is_chat = path == "/chat/completions"
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    head = {"id": "c", "object": kind, "created": 1, "model": value.get("model")}
    texts = [{"delta": {"content": word}} if is_chat else {"text": word} for word in words_of(mark)]
    begin = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else []
    rows = [{"index": 0, "finish_reason": None, **piece} for piece in [*begin, *texts]]
    rows.append({"index": 0, "finish_reason": "stop", **({"delta": {}} if is_chat else {"text": ""})})
    events = [{**head, "choices": [row]} for row in rows]
    if (value.get("stream_options") or {}).get("include_usage"):
        count = len(words_of(mark))
        usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
        events.append({**head, "choices": [], "usage": usage})
    return [json.dumps(event, ensure_ascii=False).encode() for event in events]
