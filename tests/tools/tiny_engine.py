"""A tiny server with OpenAI's API, for models that run by a command of the table: the standard library alone.

    python tiny_engine.py --port 8085 --name tiny

It takes only requests for the model `--name`, and says in each answer which model they named. What else it can
do stands in the help of its arguments.
"""

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPLY = "hello from a command"


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
    parser.add_argument("--name", default="", help="the only model that it takes; empty = any")
    parser.add_argument("--load-s", type=float, default=0.0, help="it says 503 for so long")
    parser.add_argument("--exit-after-s", type=float, help="it exits with 7 after so long")
    parser.add_argument("--exit-at-once", action="store_true", help="it writes a line and exits with 3")
    parser.add_argument("--never-ready", action="store_true", help="it says 503 for ever")
    parser.add_argument("--no-health", action="store_true", help="it has no /health")
    parser.add_argument("--only-tcp", action="store_true", help="it has no page that says that it is ready")
    parser.add_argument("--ignore-term", action="store_true", help="it ignores SIGTERM")
    parser.add_argument("--answer-s", type=float, default=0.0, help="so long it works on an answer")
    parser.add_argument("--crash-file", default="", help="it crashes at a request while this file exists")
    return parser.parse_args(words)


class Handler(BaseHTTPRequestHandler):
    """One request. `options`, `began_s` and `busy` are set on the class by `main`."""

    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    began_s: float
    lock = threading.Lock()
    active = 0
    most = 0

    def do_GET(self) -> None:
        options, path = self.options, urlsplit(self.path).path
        is_ready = not options.never_ready and time.monotonic() - self.began_s >= options.load_s
        if options.only_tcp or (path == "/health" and options.no_health):
            self.say(404, {"error": "no such page"})
        elif path == "/most":
            self.say(200, {"most": Handler.most})
        elif path in {"/health", "/v1/models", "/ready"}:
            self.say(200 if is_ready else 503, {"object": "list", "data": [{"id": options.name}]})
        else:
            self.say(404, {"error": "no such page"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.options.crash_file and os.path.exists(self.options.crash_file):
            os._exit(9)
        with self.lock:
            Handler.active += 1
            Handler.most = max(Handler.most, Handler.active)
        try:
            time.sleep(self.options.answer_s)
            self.answer(body)
        finally:
            with self.lock:
                Handler.active -= 1

    def answer(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        is_form = self.headers.get("Content-Type", "").startswith("multipart/")
        value: dict[str, Any] = {} if is_form else json.loads(body or b"{}")
        if is_form:
            found = re.search(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n', body)
            model = found[1].decode() if found else ""
        else:
            model = value.get("model") or parse_qs(parts.query).get("model", [""])[0]
        if self.options.name and model and model != self.options.name:
            self.say(404, {"error": {"message": f"there is no model {model!r} here"}})
        elif parts.path == "/v1/chat/completions":
            self.chat(value, model)
        elif parts.path in {"/v1/audio/transcriptions", "/inference"}:
            self.say(200, {"text": f"{len(body)} bytes", "model": model})
        elif parts.path in {"/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img"}:
            self.say(200, {"data": [{"b64_json": "aGVsbG8="}], "model": model})
        else:
            self.say(404, {"error": {"message": f"nothing at {parts.path}"}})

    def chat(self, value: dict[str, Any], model: str) -> None:
        head = {"id": "c", "created": 1, "model": model}
        usage = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
        if not value.get("stream"):
            message = {"role": "assistant", "content": REPLY}
            choices: list[dict[str, Any]] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.say(200, {**head, "object": "chat.completion", "choices": choices, "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word, end in [(word, None) for word in re.findall(r"\S+\s*", REPLY)] + [("", "stop")]:
            choices = [{"index": 0, "delta": {"content": word} if word else {}, "finish_reason": end}]
            event = {**head, "object": "chat.completion.chunk", "choices": choices}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def say(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    options = parse(sys.argv[1:])
    print("tiny engine begins", flush=True)
    if options.exit_at_once:
        print("there is no luck today", file=sys.stderr, flush=True)
        raise SystemExit(3)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Handler.options, Handler.began_s = options, time.monotonic()
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    if options.exit_after_s is not None:
        threading.Timer(options.exit_after_s, os._exit, (7,)).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
