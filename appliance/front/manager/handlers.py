"""The addresses of the model manager: status for clients; load, eject, reset and pin for operators.

Without a table of models they answer with none. Shapes: models/status/objects.py, models/status/measures.py,
objects.py, snapshot.py; streams: feeds.py. For compatibility, see docs/compatibility.md.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import Invalid, NoSuchModel
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.stream import GeneratedStream
from appliance.front.manager.feeds import EVERY_S, SILENCE_S, StatusFeeds, load_events
from appliance.front.manager.objects import (
    health_of_models,
    queue_stats,
    telemetry,
    vram,
    vram_of_model,
    vram_summary,
)
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.durations import parse_keep_alive_s
from appliance.front.pipeline.errors import error_body
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS, render_error_event, render_event
from appliance.models.runner.log_reader import MAX_LINES, LogReader, follow_log
from appliance.models.status.measures import report
from appliance.models.status.objects import as_file, as_model, as_status
from appliance.models.status.views import ModelManagerApi, ModelView

MAX_ERROR_CHARS = 200
DEFAULT_LOG_LINES = 100
VERBS = "reset|load|pin|unpin"


class ManagerHandlers:
    """The handlers of the model manager. `close` ends the feeds, so that they do not delay a shutdown.

    Args:
        manager: The model manager.
        clock: The time of ages and timestamps.
        status_path: The file of models/status/file.py; None = it is not written.
        silence_s: Seconds without an event after which a feed sends a heartbeat.
        every_s: Seconds between two `metrics` events.
        gpu: Returns the object `gpu` of /healthz.
    """

    def __init__(
        self,
        manager: ModelManagerApi,
        *,
        clock: Clock,
        status_path: Path | None = None,
        silence_s: float = SILENCE_S,
        every_s: float = EVERY_S,
        gpu: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._status_path = status_path
        self._gpu = gpu
        self._feeds = StatusFeeds(lambda: manager, clock=clock, silence_s=silence_s, every_s=every_s)

    def close(self) -> None:
        """End every feed."""
        self._feeds.close()

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        # Fixed addresses before those with a name: a model may be called `failed` or `status`.
        read = partial(Route, ("GET",), is_open_while_draining=True)
        act = partial(Route, ("POST",), access=Access.OPERATOR)
        return [
            read("/v1/models/status", self.all_status),
            read("/v1/models/status/file", self.status_file),
            read("/v1/models/status/stream", self.status_stream, takes_ticket=True),
            read("/v1/models/status/{alias:.+}", self.one_status),
            read("/v1/models/failed", self.failed),
            read("/v1/models/eject", self.only_post),
            act("/v1/models/eject", self.eject),
            act("/v1/models/{alias:.+}/reset", self.reset),
            act("/v1/models/{alias:.+}/load", self.load),
            act("/v1/models/{alias:.+}/pin", self.pin),
            act("/v1/models/{alias:.+}/unpin", self.unpin),
            read(f"/v1/models/{{alias:.+}}/{{verb:{VERBS}}}", self.only_post),
            read("/v1/models/{alias:.+}/status", self.short_status),
            read("/v1/models/{alias:.+}/logs", self.logs, access=Access.OPERATOR, takes_ticket=True),
            read("/v1/queue/stats", self.queue_stats),
            read("/v1/health/models", self.health),
            read("/v1/telemetry/summary", self.telemetry),
            read("/vram", self.vram),
            read("/vram/summary", self.vram_summary),
            read("/vram/models/{alias:.+}", self.vram_of_model),
            read("/metrics/stream", self.metrics_stream, takes_ticket=True),
            read("/metrics/report", self.metrics_report),
        ]

    # ---- status

    async def all_status(self, request: Request) -> Response:
        """Show the status of the server and of every model: `{server, models, summary}`."""
        return json_response(as_status(self._manager))

    async def one_status(self, request: Request) -> Response:
        """Show the status of one model; 404 for an alias that is not in the table."""
        return json_response(self._object(self._view(request)))

    async def status_file(self, request: Request) -> Response:
        """Show the content of `model_status.json`; where that file is not written, what it would contain."""
        if self._status_path is not None:
            try:
                return Response(body=await asyncio.to_thread(self._status_path.read_bytes))
            except OSError:
                pass  # not written yet, or not readable: its content is rendered instead
        return json_response(as_file(self._manager))

    async def status_stream(self, request: Request) -> Response:
        """Follow the status as server-sent events.

        The events: StatusFeeds.status.
        """
        return _stream(self._feeds.status())

    async def short_status(self, request: Request) -> Response:
        """Show a model's state in one word.

        Returns:
            `{model, status, port?}`; `detail` instead of `port` for crashed and failed; `stopped` for off.
        """
        view = self._view(request)
        body: dict[str, Any] = {
            "model": view.alias,
            "status": "stopped" if view.status == "off" else view.status,
        }
        if view.status in {"crashed", "failed"}:
            body["detail"] = view.error_message
        elif view.port is not None:
            body["port"] = view.port
        return json_response(body)

    async def failed(self, request: Request) -> Response:
        """List the models that failed.

        Returns:
            `{failed_models: [{model, attempts, error}]}`, errors shortened; with `message` where there are
            none.
        """
        rows = [
            {"model": one.alias, "attempts": one.attempts, "error": one.error[:MAX_ERROR_CHARS]}
            for one in self._manager.failed_models()
        ]
        return json_response(
            {"failed_models": rows} if rows else {"failed_models": [], "message": "No failed models"}
        )

    # ---- for operators

    async def eject(self, request: Request) -> Response:
        """Unload a model: `{model, force?}`.

        Returns:
            200 `{status: success | not_found, model_ejected, message}`.
        """
        body = read_object(request.body)
        check_types(body, {"model": str, "force": bool})
        alias = body.get("model")
        if not alias:
            raise Invalid(
                "`model` is required: the alias of the model to unload.",
                param="model",
                code="missing_required_parameter",
            )
        result: dict[str, Any] = {"status": "not_found", "model_ejected": alias}
        try:
            ejected = await self._manager.eject(alias, force=bool(body.get("force")))
        except NoSuchModel as error:
            return json_response({**result, "message": error.message})
        if not ejected.was_loaded:
            return json_response({**result, "message": f"Model '{alias}' is not loaded."})
        result |= {"status": "success", "message": f"Model '{alias}' was unloaded."}
        return json_response({**result, "waited_for": ejected.waited_for})

    async def reset(self, request: Request) -> Response:
        """Forget a model's failures.

        Returns:
            200 `{status: success | not_found, model, message, previous_error?}`.
        """
        alias = request.params["alias"]
        result: dict[str, Any] = {"status": "not_found", "model": alias}
        try:
            former = self._manager.reset(alias)
        except NoSuchModel as error:
            return json_response({**result, "message": error.message})
        if former is None:
            return json_response({**result, "message": f"Model '{alias}' has no failures."})
        message = f"Model '{alias}' can be loaded again; {former.attempts} failed attempts were forgotten."
        return json_response(
            {"status": "success", "model": alias, "message": message, "previous_error": former.error}
        )

    async def load(self, request: Request) -> Response:
        """Load a model: `{keep_alive?, stream?}`.

        keep_alive  seconds, or a duration such as "5m"; negative = for ever, as in Ollama's API
        stream      true → `model_update` events; a failed load ends with an `error` event

        Returns:
            The model object when it is ready; with `stream` the events until then.
        """
        body = read_object(request.body) if request.body.strip() else {}
        check_types(body, {"stream": bool})
        keep_alive_s = parse_keep_alive_s(body.get("keep_alive"))
        alias = self._view(request).alias
        if body.get("stream"):
            return _stream(load_events(self._manager, alias, keep_alive_s))
        return json_response(self._object(await self._manager.load(alias, keep_alive_s=keep_alive_s)))

    async def pin(self, request: Request) -> Response:
        """Pin a model: it is never unloaded for another model or for being idle."""
        return json_response(self._object(self._manager.pin(self._view(request).alias)))

    async def unpin(self, request: Request) -> Response:
        """Unpin a model."""
        return json_response(self._object(self._manager.pin(self._view(request).alias, pinned=False)))

    async def logs(self, request: Request) -> Response:
        """Show the last lines of the log of a model's llama-server; with `follow=1` new ones as events, too.

        lines   how many, 0 to 2000, else 100
        follow  1 → server-sent events: `log` with `{lines: […]}`, at the end `shutdown`
        port    of one of its llama-servers; else the first one, or the latest that ended

        Returns:
            `{model, log, lines: [text, …]}`; `log` is the file, null where the model was never started.
        """
        query = Query(request.query, allowed=("lines", "follow", "port"))
        lines = query.number("lines", default=DEFAULT_LOG_LINES, low=0, high=MAX_LINES)
        port = query.number("port", default=0, low=1, high=65_535)
        alias = self._view(request).alias
        find_path = self._manager.log_finder(alias, port)
        if query.flag("follow"):
            return _stream(self._log_events(alias, port, lines), heartbeat=HEARTBEAT)
        path = await asyncio.to_thread(find_path)
        found = await asyncio.to_thread(LogReader().tail, lambda: path, lines)
        return json_response({"model": alias, "log": str(path) if path else None, "lines": found})

    async def _log_events(self, alias: str, port: int, lines: int) -> AsyncGenerator[bytes, None]:
        follow = follow_log(
            lambda: self._manager.log_finder(alias, port), lines=lines, is_over=self._feeds.closed
        )
        async with aclosing(follow) as pieces:
            async for new in pieces:
                yield render_event("log", {"lines": new})
        yield render_event("shutdown", {"message": "Server shutting down"})

    async def only_post(self, request: Request) -> Response:
        """Refuse GET with 405 where only POST is allowed; 404 for an unknown model."""
        if "alias" in request.params and self._manager.catalogue.name_of(request.params["alias"]) is None:
            name = f"{request.params['alias']}/{request.params['verb']}"
            raise NoSuchModel(f"The model {name!r} does not exist here.", param="model")
        error = Invalid(f"GET is not allowed at {request.path}; use POST.", code="method_not_allowed")
        return Response(405, error_body(error, "openai"), headers=[("Allow", "POST")])

    # ---- memory, queues, health, metrics

    async def queue_stats(self, request: Request) -> Response:
        """Show the queue of every model."""
        return json_response(queue_stats(self._manager.queues()))

    async def health(self, request: Request) -> Response:
        """Show the health of every model that is loaded."""
        return json_response(health_of_models(self._manager.health()))

    async def telemetry(self, request: Request) -> Response:
        """Show statistics of the latest requests."""
        return json_response(telemetry(self._manager.telemetry()))

    async def vram(self, request: Request) -> Response:
        """Show the memory of the GPUs, or of the system without GPUs, and the models in it."""
        return json_response(vram(self._manager) | {"gpu": self._gpu()})

    async def vram_summary(self, request: Request) -> Response:
        """Show the memory in short, with the models that are ready."""
        return json_response(vram_summary(self._manager))

    async def vram_of_model(self, request: Request) -> Response:
        """Show the memory of one model."""
        return json_response(vram_of_model(self._manager, self._view(request), self._clock.now_s()))

    async def metrics_stream(self, request: Request) -> Response:
        """Follow the metrics of the last minute as server-sent events.

        The events: StatusFeeds.metrics.
        """
        return _stream(self._feeds.metrics())

    async def metrics_report(self, request: Request) -> Response:
        """Show the metrics of the last five minutes."""
        return json_response(report(self._manager, self._clock.now_s()))

    def _view(self, request: Request) -> ModelView:
        return self._manager.model(request.params["alias"])

    def _object(self, view: ModelView) -> dict[str, Any]:
        queues = {queue.alias: queue for queue in self._manager.queues()}
        return as_model(view, queues.get(view.alias))


def _stream(pieces: AsyncGenerator[bytes, None], *, heartbeat: bytes = b"") -> Response:
    return Response(
        content_type=SSE_CONTENT_TYPE,
        headers=SSE_HEADERS,
        pieces=GeneratedStream(pieces),
        on_error=render_error_event,
        heartbeat=heartbeat,
    )
