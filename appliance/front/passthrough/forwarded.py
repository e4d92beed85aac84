"""A request that is passed on to a backend, and how it is read from the client's request."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from aiohttp import web

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.engines.types import RequestOptions
from appliance.engines.upstream.request_settings import settle, settles
from appliance.engines.upstream.splice import with_model
from appliance.front.passthrough.form import FormModel, boundary_of, find_model
from appliance.front.passthrough.rules import SAFE, is_work
from appliance.front.passthrough.upload import Upload
from appliance.front.pipeline.pipeline import too_large
from appliance.front.pipeline.request import Request
from appliance.front.settings import FrontSettings
from appliance.models.table.sampling import RequestSettings

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
        form_model: Where its form names the model; None = it is no form, or names none at its beginning.
        is_form_cut: Its form is too large to be read to its end, and does not name the model before that.
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
    form_model: FormModel | None = None
    is_form_cut: bool = False

    def with_model(self, name: str) -> tuple[bytes | AsyncIterator[bytes] | None, list[tuple[str, str]]]:
        """Return body and header fields with another name of the model, where the body names it.

        Args:
            name: "" = all as it was sent.
        """
        if name and self.form_model is not None:
            head = self.upload.head if self.upload is not None else self.body or b""
            raw = name.encode()
            changed = head[: self.form_model.start] + raw + head[self.form_model.end :]
            if self.upload is not None:
                self.upload.head = changed
                self.form_model = replace(self.form_model, end=self.form_model.start + len(raw))
            added = len(changed) - len(head)
            return changed if self.upload is None else self.upload.pieces(), _longer(self.fields, added)
        body = _with_json_model(self.body, name) if name and self.body is not None else None
        if body is None or self.body is None:
            return self.upload.pieces() if self.upload is not None else self.body, self.fields
        return body, _longer(self.fields, len(body) - len(self.body))

    def settled(self, model: str, settings: RequestSettings) -> "ForwardedRequest":
        """Return the request, changed as the model table says.

        Args:
            model: The model that it goes to.
            settings: What the table says.

        Raises:
            Invalid: It generates text, and its body is none that can be changed.
        """
        path = self.target.partition("?")[0]
        if not settles(path) or not self.body:
            return self
        try:
            value = jsons.loads(self.body)
        except jsons.InvalidJson:
            value = None
        if not isinstance(value, dict):
            raise Invalid(
                f"Requests for the model {model!r} get settings of the operator: at {path[:200]} the body "
                "must be one JSON object, not compressed.",
                code="invalid_json",
            )
        body = jsons.dumps(settle(path, value, settings))
        return replace(self, body=body, fields=_longer(self.fields, len(body) - len(self.body)))

    @property
    def has_begun_upload(self) -> bool:
        """Whether a part of a streamed body may have been sent, so that it cannot be sent again."""
        return self.upload is not None and self.upload.has_begun


async def read_forwarded(
    web_request: web.Request, origin: Request, target: str, options: RequestOptions, settings: FrontSettings
) -> ForwardedRequest:
    """Read a request.

    The body is read whole where it is small, or asks for text that the model table may change.

    Raises:
        TooLarge: The body is larger than MAX_BODY_BYTES.
        TimedOut: The body did not arrive.
        Invalid: The body cannot be read.
    """
    path = target.partition("?")[0]
    does_work = is_work(origin.method, path)
    is_billed = does_work and options.billing is not None  # then the engine must read the model that we read
    size_bytes = web_request.content_length or 0
    if size_bytes > settings.max_body_bytes:
        raise too_large(settings.max_body_bytes)
    body, upload = None, None
    if web_request.body_exists:
        upload = Upload(web_request, limit_bytes=settings.max_body_bytes, patience_s=settings.body_timeout_s)
        is_form = bool(boundary_of(web_request.headers.get("Content-Type", "")))
        is_read = settles(path) or (is_billed and not is_form)
        if 0 < size_bytes <= WHOLE_BYTES or is_read:
            body, upload = await upload.read(), None
    form_model = await _find_form_model(web_request, body, upload)
    if is_billed and upload is None and form_model is None:
        _check_billed(body)
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
        model=model_of(body, target) or (form_model.name if form_model is not None else ""),
        options=options,
        is_work=does_work,
        is_repeatable=upload is None and not options.pin and (does_work or origin.method in SAFE),
        form_model=form_model,
        is_form_cut=form_model is None and upload is not None and len(upload.head) >= WHOLE_BYTES,
    )


def _check_billed(body: bytes | None) -> None:
    """Refuse a body whose model may be another one for the engine than for us, who bill by it.

    Raises:
        Invalid: It is not one JSON object that we can read.
    """
    if not body:
        return
    try:
        value = jsons.loads(body) if body.lstrip()[:1] == b"{" else None
    except jsons.InvalidJson:
        value = None
    if not isinstance(value, dict):
        raise Invalid(
            "The model of this body cannot be read, so the request cannot be billed. Send one JSON object or "
            "a form, not compressed.",
            code="invalid_json",
        )
    if not isinstance(value.get("model", ""), str):
        raise Invalid("`model` must be a string.", param="model", code="invalid_type")


async def _find_form_model(
    web_request: web.Request, body: bytes | None, upload: Upload | None
) -> FormModel | None:
    """Find the model that a form names; of a large one only what comes first is read."""
    boundary = boundary_of(web_request.headers.get("Content-Type", ""))
    if not boundary:
        return None
    if upload is not None:
        body = await upload.peek(WHOLE_BYTES, lambda head: find_model(head, boundary) is not None)
    return find_model(body or b"", boundary)


def _with_json_model(body: bytes, name: str) -> bytes | None:
    """Return a JSON body with another name of the model; None = it is not one, or names none."""
    if body.lstrip()[:1] != b"{":
        return None
    try:
        value = jsons.loads(body)
    except jsons.InvalidJson:
        return None
    is_named = isinstance(value, dict) and isinstance(value.get("model"), str)
    return with_model(body, value, name) if is_named else None


def _longer(fields: list[tuple[str, str]], added_bytes: int) -> list[tuple[str, str]]:
    """Return header fields for a body that is so much longer."""
    return [
        (name, str(int(value) + added_bytes))
        if name.lower() == "content-length" and value.isdecimal()
        else (name, value)
        for name, value in fields
    ]


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
