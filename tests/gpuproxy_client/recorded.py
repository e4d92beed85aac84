"""A server that answers each address as it was told, and keeps what it was asked; nothing of the appliance is in it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


@dataclass
class RecordedServer:
    """Addresses → responses: (status, object or bytes); several are given one after the other, the last one stays."""

    url: str = ""
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def on(self, address: str, *answers: Any, status: int = 200) -> None:
        """Answer `METHOD /path`."""
        self.answers[address] = [(status, one) for one in answers]

    def paths(self) -> list[str]:
        return [f"{one.method} {one.path}" for one in self.asked]


@contextmanager
def recorded() -> Iterator[RecordedServer]:
    server = RecordedServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            path, _, query = self.path.partition("?")
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, path, query, headers, json.loads(raw) if raw else None)
            server.asked.append(asked)
            answers = server.answers.get(f"{self.command} {path}", [(404, {"error": "no such address"})])
            status, found = answers[0] if len(answers) == 1 else answers.pop(0)
            if found is None:  # the connection ends without a response
                self.close_connection = True
                return
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **server.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
