"""The addresses of the model manager, as system D has them: status, lines, memory, health, telemetry, and the operators' verbs.

They are there only where there is a table of models. Shapes: models/status/objects.py, models_readings.py, models_snapshot.py, models/status/measures.py;
feeds: models_feed.py.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import Invalid, NoSuchModel
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.stream import GeneratedStream
from appliance.front.manager.feeds import EVERY_S, SILENCE_S, StatusFeeds, event_of_error, loading
from appliance.front.manager.objects import (
    health_of_models,
    queue_stats,
    telemetry,
    vram,
    vram_of_model,
    vram_summary,
)
from appliance.front.ollama.translated_request import parse_keep_alive_s
from appliance.front.openai.handlers import SSE_HEADERS
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.errors import error_body
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.models.status.measures import report
from appliance.models.status.objects import as_file, as_model, as_status
from appliance.models.status.views import ModelManagerApi, ModelView

ERROR_LETTERS = 200
VERBS = "reset|load|pin|unpin"
# Fixed addresses before those with a name in them: a model may be called `failed` or `status`.


class ManagerHandlers:
    """The handlers. `close` ends the feeds, so that followers do not hold up a shutdown.

    Takes   status_path: the file of models/status/file.py, None = it is not kept; silence_s, every_s: of the feeds, for tests
    """

    def __init__(
        self,
        manager: ModelManagerApi,
        *,
        clock: Clock,
        status_path: Path | None = None,
        silence_s: float = SILENCE_S,
        every_s: float = EVERY_S,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._status_path = status_path
        self._feeds = StatusFeeds(lambda: manager, clock=clock, silence_s=silence_s, every_s=every_s)

    def close(self) -> None:
        self._feeds.close()

    # ---- status

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/v1/models/status", self.all_status, is_open_while_draining=True, is_ours=True),
            Route(
                ("GET",),
                "/v1/models/status/file",
                self.status_file,
                is_open_while_draining=True,
                is_ours=True,
            ),
            Route(
                ("GET",),
                "/v1/models/status/stream",
                self.status_stream,
                is_open_while_draining=True,
                is_ours=True,
            ),
            Route(
                ("GET",),
                "/v1/models/status/{alias:.+}",
                self.one_status,
                is_open_while_draining=True,
                is_ours=True,
            ),
            Route(("GET",), "/v1/models/failed", self.failed, is_open_while_draining=True, is_ours=True),
            Route(("GET",), "/v1/models/eject", self.only_post, is_open_while_draining=True, is_ours=True),
            Route(("POST",), "/v1/models/eject", self.eject, access=Access.OPERATOR, is_ours=True),
            Route(("POST",), "/v1/models/{alias:.+}/reset", self.reset, access=Access.OPERATOR, is_ours=True),
            Route(("POST",), "/v1/models/{alias:.+}/load", self.load, access=Access.OPERATOR, is_ours=True),
            Route(("POST",), "/v1/models/{alias:.+}/pin", self.pin, access=Access.OPERATOR, is_ours=True),
            Route(("POST",), "/v1/models/{alias:.+}/unpin", self.unpin, access=Access.OPERATOR, is_ours=True),
            Route(
                ("GET",),
                f"/v1/models/{{alias:.+}}/{{verb:{VERBS}}}",
                self.only_post,
                is_open_while_draining=True,
                is_ours=True,
            ),
            Route(
                ("GET",), "/v1/models/{alias:.+}/status", self.word, is_open_while_draining=True, is_ours=True
            ),
            Route(("GET",), "/v1/queue/stats", self.queue_stats, is_open_while_draining=True, is_ours=True),
            Route(("GET",), "/v1/health/models", self.health, is_open_while_draining=True, is_ours=True),
            Route(
                ("GET",), "/v1/telemetry/summary", self.telemetry, is_open_while_draining=True, is_ours=True
            ),
            Route(("GET",), "/vram", self.vram, is_open_while_draining=True, is_ours=True),
            Route(("GET",), "/vram/summary", self.vram_summary, is_open_while_draining=True, is_ours=True),
            Route(
                ("GET",),
                "/vram/models/{alias:.+}",
                self.vram_of_model,
                is_open_while_draining=True,
                is_ours=True,
            ),
            Route(
                ("GET",), "/metrics/stream", self.metrics_stream, is_open_while_draining=True, is_ours=True
            ),
            Route(
                ("GET",), "/metrics/report", self.metrics_report, is_open_while_draining=True, is_ours=True
            ),
        ]

    async def all_status(self, request: Request) -> Response:
        """GET /v1/models/status: `{server, models, summary}`."""
        return json_response(as_status(self._manager))

    async def one_status(self, request: Request) -> Response:
        """GET /v1/models/status/{alias}: one model object; 404 for an alias that is not in the table."""
        return json_response(self._object(self._view(request)))

    async def status_file(self, request: Request) -> Response:
        """GET /v1/models/status/file: what `model_status.json` holds; where it is not kept, what it would."""
        if self._status_path is not None:
            try:
                return Response(body=await asyncio.to_thread(self._status_path.read_bytes))
            except OSError:
                pass  # not written yet, or not writable: the status itself is at hand
        return json_response(as_file(self._manager))

    async def status_stream(self, request: Request) -> Response:
        """GET /v1/models/status/stream: see Feeds.status."""
        return _stream(self._feeds.status())

    async def word(self, request: Request) -> Response:
        """GET /v1/models/{alias}/status: `{model, status, port?}`, with `detail` when it crashed or failed; `stopped` for off."""
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
        """GET /v1/models/failed: `{failed_models: [{model, attempts, error}]}`, the error's first 200 letters; `message` when there are none."""
        rows = [
            {"model": one.alias, "attempts": one.attempts, "error": one.error[:ERROR_LETTERS]}
            for one in self._manager.failed_models()
        ]
        return json_response(
            {"failed_models": rows} if rows else {"failed_models": [], "message": "No failed models"}
        )

    # ---- the operators' verbs

    async def eject(self, request: Request) -> Response:
        """POST /v1/models/eject `{model, force?}`: `{status: success | not_found, model_ejected, message}`, 200 both."""
        body = read_object(request.body)
        check_types(body, {"model": str, "force": bool})
        alias = body.get("model")
        if not alias:
            raise Invalid(
                "`model` is required: the alias of the model to unload.",
                param="model",
                code="missing_required_parameter",
            )
        try:
            ejected = await self._manager.eject(alias, force=bool(body.get("force")))
        except NoSuchModel as error:
            return json_response({"status": "not_found", "model_ejected": alias, "message": error.message})
        if not ejected.was_loaded:
            return json_response(
                {"status": "not_found", "model_ejected": alias, "message": f"Model '{alias}' is not loaded."}
            )
        return json_response(
            {
                "status": "success",
                "model_ejected": alias,
                "message": f"Model '{alias}' was unloaded.",
                "waited_for": ejected.waited_for,
            }
        )

    async def reset(self, request: Request) -> Response:
        """POST /v1/models/{alias}/reset: `{status: success | not_found, model, message, previous_error?}`, 200 both."""
        alias = request.params["alias"]
        try:
            was = self._manager.reset(alias)
        except NoSuchModel as error:
            return json_response({"status": "not_found", "model": alias, "message": error.message})
        if was is None:
            return json_response(
                {
                    "status": "not_found",
                    "model": alias,
                    "message": f"Model '{alias}' has no failures to forget.",
                }
            )
        return json_response(
            {
                "status": "success",
                "model": alias,
                "message": f"Model '{alias}' is tried again when it is next asked for; "
                f"{was.attempts} failed attempts are forgotten.",
                "previous_error": was.error,
            }
        )

    async def load(self, request: Request) -> Response:
        """POST /v1/models/{alias}/load `{keep_alive?, stream?}`: the model object once it is ready, or a feed until then.

        keep_alive  seconds or a duration such as "5m", negative = for ever, as in Ollama's API
        stream      true → `model_update` events; a failed load ends with an `error` event
        """
        body = read_object(request.body) if request.body.strip() else {}
        check_types(body, {"stream": bool})
        stay_s = parse_keep_alive_s(body.get("keep_alive"))
        stay_s = -1.0 if stay_s == math.inf else stay_s
        alias = self._view(request).alias
        if body.get("stream"):
            return _stream(loading(self._manager, alias, stay_s))
        return json_response(self._object(await self._manager.load(alias, keep_alive_s=stay_s)))

    async def pin(self, request: Request) -> Response:
        """POST /v1/models/{alias}/pin: it is never unloaded for others or for idleness; the model object."""
        return json_response(self._object(self._manager.pin(self._view(request).alias)))

    async def unpin(self, request: Request) -> Response:
        """POST /v1/models/{alias}/unpin."""
        return json_response(self._object(self._manager.pin(self._view(request).alias, pinned=False)))

    async def only_post(self, request: Request) -> Response:
        """GET at an address of a verb: 405; a model that is called so does not exist here."""
        if "alias" in request.params and request.params["alias"] not in self._manager.catalogue.models:
            raise NoSuchModel(
                f"The model {request.params['alias'] + '/' + request.params['verb']!r} does not exist here.",
                param="model",
            )
        error = Invalid(f"{request.path} does not take GET; it takes POST.", code="method_not_allowed")
        return Response(405, error_body(error, "openai"), headers=[("Allow", "POST")])

    # ---- readings

    async def queue_stats(self, request: Request) -> Response:
        """GET /v1/queue/stats."""
        return json_response(queue_stats(self._manager.queues()))

    async def health(self, request: Request) -> Response:
        """GET /v1/health/models."""
        return json_response(health_of_models(self._manager.health()))

    async def telemetry(self, request: Request) -> Response:
        """GET /v1/telemetry/summary."""
        return json_response(telemetry(self._manager.telemetry()))

    async def vram(self, request: Request) -> Response:
        """GET /vram."""
        return json_response(vram(self._manager))

    async def vram_summary(self, request: Request) -> Response:
        """GET /vram/summary."""
        return json_response(vram_summary(self._manager))

    async def vram_of_model(self, request: Request) -> Response:
        """GET /vram/models/{alias}."""
        return json_response(vram_of_model(self._manager, self._view(request), self._clock.now_s()))

    async def metrics_stream(self, request: Request) -> Response:
        """GET /metrics/stream: see Feeds.metrics."""
        return _stream(self._feeds.metrics())

    async def metrics_report(self, request: Request) -> Response:
        """GET /metrics/report: the last five minutes."""
        return json_response(report(self._manager, self._clock.now_s()))

    def _view(self, request: Request) -> ModelView:
        return self._manager.model(request.params["alias"])

    def _object(self, view: ModelView) -> dict[str, Any]:
        lines = {queue.alias: queue for queue in self._manager.queues()}
        return as_model(view, lines.get(view.alias))


def _stream(pieces: AsyncGenerator[bytes, None]) -> Response:
    return Response(
        content_type=SSE_CONTENT_TYPE,
        headers=SSE_HEADERS,
        pieces=GeneratedStream(pieces),
        on_error=event_of_error,
    )
