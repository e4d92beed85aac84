"""A server on threads of its own that answers before it has read a request, as real servers do.

It lists one model, `tiny`.

with EarlyServer(b"HTTP/1.1 413 Too Large\\r\\n…", after_bytes=0, ending="close") as server:
    …                                       # server.url, server.requests
"""

import contextlib
import socket
import threading
from types import TracebackType


class EarlyServer:
    """Reads `after_bytes` of each request (its head at least), and answers.

    Args:
        answer: All bytes of the answer; b"" = none.
        after_bytes: How much of a request is read first.
        ending: `close` (with unread bytes the kernel resets the connection), `linger` (reads on until the client
            has closed), or `hold` (reads nothing more, and keeps the connection open).
    """

    def __init__(self, answer: bytes, *, after_bytes: int = 0, ending: str = "close") -> None:
        self.answer, self.after_bytes, self.ending = answer, after_bytes, ending
        self.requests = 0
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "EarlyServer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # `accept` returns
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := connection.recv(4096)):
                    return
                head += data
            if not head.startswith(b"POST "):  # a probe of the appliance
                is_list = head.startswith(b"GET /v1/models ")
                text = b'{"object":"list","data":[{"id":"tiny","object":"model"}]}' if is_list else b""
                connection.sendall(
                    b"HTTP/1.1 %d -\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                    % (200 if is_list else 404, len(text), text)
                )
                return
            self.requests += 1
            read_bytes = len(head)
            while read_bytes < self.after_bytes:
                read_bytes += len(connection.recv(65_536))
            connection.sendall(self.answer)
            if self.ending == "linger":
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
            elif self.ending == "hold":
                self._is_over.wait(60)
