"""A request that is passed on to a backend, and how it is read from the client's request."""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import parse_qs

from aiohttp import web

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.engines.types import RequestOptions
from appliance.front.passthrough.rules import SAFE, is_work
from appliance.front.passthrough.upload import Upload
from appliance.front.pipeline.pipeline import too_large
from appliance.front.pipeline.request import Request
from appliance.front.settings import FrontSettings

# A body up to this size is read first: it may name a model, and it can be sent again to another server.
WHOLE_BYTES = 1_048_576


@dataclass(slots=True)
class ForwardedRequest:
    """A request that is passed on.

    Attributes:
        origin: The pipeline's request.
        web_request: aiohttp's request; the response is written to it.
        target: Path and query, percent-encoded, unchanged.
        fields: Header fields of the client, unchanged.
        body: All bytes; None = it is streamed (`upload`), or there is none.
        upload: The body, streamed from the client; None = it is not streamed.
        model: The model that it names; "" = any server can answer.
        options: How it is routed; `pin` names the only backend that may be used.
        is_work: Whether it takes a slot of the server.
        is_repeatable: Whether it may be sent again to another server.
    """

    origin: Request
    web_request: web.Request
    target: str
    fields: list[tuple[str, str]]
    body: bytes | None
    upload: Upload | None
    model: str
    options: RequestOptions
    is_work: bool
    is_repeatable: bool

    @property
    def has_begun_upload(self) -> bool:
        """Whether a part of a streamed body may have been sent, so that it cannot be sent again."""
        return self.upload is not None and self.upload.has_begun


async def read_forwarded(
    web_request: web.Request, origin: Request, target: str, options: RequestOptions, settings: FrontSettings
) -> ForwardedRequest:
    """Read a request; the body is read only where it is small.

    Raises:
        TooLarge: The body is larger than MAX_BODY_BYTES.
        TimedOut: The body did not arrive.
        Invalid: The body cannot be read.
    """
    size_bytes = web_request.content_length or 0
    if size_bytes > settings.max_body_bytes:
        raise too_large(settings.max_body_bytes)
    body, upload = None, None
    if web_request.body_exists:
        upload = Upload(web_request, limit_bytes=settings.max_body_bytes, patience_s=settings.body_timeout_s)
        if 0 < size_bytes <= WHOLE_BYTES:
            body, upload = await upload.read(), None
    does_work = is_work(origin.method, target.partition("?")[0])
    return ForwardedRequest(
        origin=origin,
        web_request=web_request,
        target=target,
        fields=[
            (name.decode("utf-8", "replace"), value.decode("utf-8", "replace"))
            for name, value in web_request.raw_headers
        ],
        body=body,
        upload=upload,
        model=model_of(body, target),
        options=options,
        is_work=does_work,
        is_repeatable=upload is None and not options.pin and (does_work or origin.method in SAFE),
    )


def target_of(web_request: web.Request) -> str:
    """Return path and query, not decoded; of the absolute form (RFC 9112, 3.2.2) what follows the host.

    Raises:
        Invalid: Neither a path nor the absolute form.
    """
    raw = web_request.raw_path
    if "://" in raw.partition("/")[0] + raw[:12] and not raw.startswith("/"):
        rest = raw.split("://", 1)[1]
        raw = "/" + rest.partition("/")[2]
    if not raw.startswith("/"):
        raise Invalid("The address must be a path that begins with /.", code="invalid_address")
    return raw.partition("#")[0]


def model_of(body: bytes | None, target: str) -> str:
    """Return the model that a request names, in its JSON body or in its query; "" = none."""
    if body and body.lstrip()[:1] == b"{":
        try:
            value = jsons.loads(body)
        except jsons.InvalidJson:
            value = None
        model = value.get("model") if isinstance(value, dict) else None
        if isinstance(model, str):
            return model
    return parse_qs(target.partition("?")[2]).get("model", [""])[0]


def decode_fields(fields: Collection[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Decode header fields."""
    return [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in fields]
