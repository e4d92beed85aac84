"""Chats over a socket: each is a request at the address of /v1, with the same checks and the same meter."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from appliance.base import jsons
from appliance.base.sse import SseReader
from appliance.engines.outcome import Finish
from appliance.front.pipeline.pipeline import RequestPipeline, close_stream
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route


class SocketChats:
    """Answers chats.

    Args:
        pipeline: What every request passes.
        route: Returns the address `/v1/chat/completions`.
    """

    def __init__(self, pipeline: RequestPipeline, route: Callable[[], Route]) -> None:
        self._pipeline = pipeline
        self._route = route

    async def answer(
        self, headers: dict[str, str], peer: str, body: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield messages without their id: `chunk` for each event of the stream, then `done` or `error`.

        Args:
            headers: With the caller's credential.
            peer: The caller's address.
            body: As /v1/chat/completions takes it; the response is always streamed.
        """
        route = self._route()
        path = route.path
        request = self._pipeline.request(
            path,
            method="POST",
            path=path,
            headers={**headers, "content-type": "application/json"},
            body=jsons.dumps({**body, "stream": True}),
            peer=peer,
        )
        with request:
            response = await self._pipeline.respond(route, request)
            if response.pieces is None:
                request.sent_bytes = len(response.body)
                request.finish = Finish.DONE
                for message in _whole(response, request):
                    yield message
                return
            async for message in self._stream(response, request):
                yield message

    async def _stream(self, response: Response, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        pieces, reader = response.pieces, SseReader()
        assert pieces is not None
        try:
            async for piece in pieces:
                if not request.sent_bytes:
                    self._pipeline.mark_first_byte(request)
                request.sent_bytes += len(piece)
                for event in reader.feed(piece):
                    if event is not None and "error" in event and "choices" not in event:
                        request.finish = Finish.CUT_OFF
                        yield _error(event, request)
                        return
                    if event is not None:
                        yield {"type": "chunk", "data": event}
            request.finish = Finish.DONE
        except Exception as error:
            failure = self._pipeline.fail_stream(error, request)
            yield {"type": "error", "error": failure.message, "code": failure.code or failure.kind.value}
            return
        finally:
            request.events = pieces.events
            await close_stream(pieces, request)
        yield {"type": "done", "request_id": request.id}


def _whole(response: Response, request: Request) -> list[dict[str, Any]]:
    """Return the messages of a response that is no stream: an error, or all of it as one chunk."""
    try:
        value = jsons.loads(response.body)
    except jsons.InvalidJson:
        value = None
    if response.status >= 400 or not isinstance(value, dict):
        return [_error(value if isinstance(value, dict) else {}, request, status=response.status)]
    return [{"type": "chunk", "data": value}, {"type": "done", "request_id": request.id}]


def _error(body: dict[str, Any], request: Request, *, status: int | None = None) -> dict[str, Any]:
    error = body.get("error")
    fields: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    message = {
        "type": "error",
        "error": str(fields.get("message") or "The request failed."),
        "code": fields.get("code") or fields.get("type") or "error",
        "request_id": request.id,
    }
    return message if status is None else {**message, "status": status}
