"""The description of the HTTP API in the form of OpenAPI 3.1, made from the table of routes."""

import re
from collections.abc import Iterable, Sequence
from inspect import cleandoc, getdoc
from typing import Any

from appliance.front.openapi.schemas import SCHEMAS, Schema, ref
from appliance.front.openapi.shapes import OBJECT, SHAPES, Shape
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.route import Route

OPENAPI_VERSION = "3.1.0"
JSON = "application/json"
METHODS = ("GET", "PUT", "POST", "PATCH", "DELETE")  # HEAD and OPTIONS follow from them
ERRORS = {
    400: "The request is not valid; the error says what, and what is allowed",
    401: "No key, or one that is not known",
    402: "The credits of the key, or a limit on its spending, do not allow it",
    403: "The key does not open this address, or the page or host may not call",
    404: "There is no such thing",
    405: "The address does not take this method; `Allow` says which it takes",
    408: "The request did not arrive in time",
    409: "It cannot be done in the present state",
    413: "The body is larger than MAX_BODY_BYTES",
    415: "The Content-Encoding of the body is not known",
    422: "An engine refused the request",
    426: "The address is a WebSocket: send `Upgrade: websocket`",
    429: "Too many requests; `Retry-After` says when to come back",
    431: "The head is larger than MAX_HEADER_BYTES",
    500: "Something failed inside the appliance; its log has the details under the request's id",
    501: "It is not served here",
    502: "A backend failed",
    503: "Nothing can answer at present; `Retry-After` says when to come back",
    504: "No backend answered in time",
}
ERROR_NAMES = {
    "openai": "ErrorOpenai",
    "ollama": "ErrorOllama",
    "anthropic": "ErrorAnthropic",
    "detail": "ErrorDetail",
    "market": "ErrorMarket",
}
ACCESS = {
    Access.PUBLIC: "Open to all.",
    Access.CLIENT: "For clients: a key of APPLIANCE_API_KEYS, where keys are set.",
    Access.ACCOUNT: "For users: an API key of one, or the access token of a session.",
    Access.OPERATOR: "For operators: a key of OPERATOR_API_KEYS, or, without keys, a caller on this machine.",
}
ABOUT = cleandoc(
    """
    The APIs of OpenAI, Anthropic and Ollama, answered by whatever fits, and the addresses that show and
    control the appliance. HEAD is answered wherever GET is; OPTIONS names the methods of an address.
    """
)
_PARAMETER = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


def build_document(sections: Iterable[tuple[str, Sequence[Route]]], *, version: str) -> dict[str, Any]:
    """Describe addresses.

    Args:
        sections: (title, routes), in order.
        version: Of the appliance.

    Returns:
        `{openapi, info, security, tags, paths, components}`.
    """
    paths: dict[str, dict[str, Any]] = {}
    tags: list[dict[str, str]] = []
    for title, routes in sections:
        if routes:
            tags.append({"name": title})
        for route in routes:
            path = plain_path(route.path)
            for method in (one for one in METHODS if one in route.methods):
                # The first route that fits is the one that is served.
                paths.setdefault(path, {}).setdefault(method.lower(), _operation(route, method, path, title))
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "Inference Appliance", "version": version, "description": ABOUT},
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def plain_path(path: str) -> str:
    """Return a route's path without the expressions of its parts: `{alias:.+}` becomes `{alias}`."""
    return _PARAMETER.sub(r"{\1}", path)


def _operation(route: Route, method: str, path: str, title: str) -> dict[str, Any]:
    """Describe one method of one address."""
    known = SHAPES.get((method, path), OBJECT)
    details = (getdoc(route.handler) or "").partition("\n")[2].strip()
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "tags": [title],
        "summary": route.summary,
        "description": f"{_access_text(route)}\n\n{details}".strip(),
        "parameters": [*_path_parameters(route.path), *_query_parameters(known)],
        "responses": _responses(route, known),
    }
    if route.access is not Access.PUBLIC:
        keys: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
        made["security"] = keys if route.access is Access.ACCOUNT else [{}, *keys]
    if known.body is not None:
        media = JSON if known.body else "application/octet-stream"
        made["requestBody"] = {
            "required": not known.is_body_optional,
            "content": {media: {"schema": known.body}},
        }
    return made


def _access_text(route: Route) -> str:
    """Say who may call."""
    text = ACCESS[route.access]
    if route.access is Access.ACCOUNT and route.scope:
        return f"{text} An API key needs the scope `{route.scope}`."
    return text


def _path_parameters(path: str) -> list[dict[str, Any]]:
    """Describe the parts of a path: a piece, several pieces, or one of some words."""
    rows = []
    for name, expression in _PARAMETER.findall(path):
        schema: Schema = {"type": "string", "minLength": 1}
        if re.fullmatch(r"\w+(\|\w+)*", expression):
            schema = {"enum": expression.split("|")}
        row = {"name": name, "in": "path", "required": True, "schema": schema}
        if expression == ".+":
            row["description"] = "It may have slashes."
        rows.append(row)
    return rows


def _query_parameters(known: Shape) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in known.query.items()
    ]


def _responses(route: Route, known: Shape) -> dict[str, Any]:
    """Describe the responses of an address: successes, then errors in its dialect."""
    error = {JSON: {"schema": ref(ERROR_NAMES[route.dialect])}}
    content: dict[str, Any] = {media: {"schema": {"type": "string"}} for media in known.others}
    if known.answer is not None:
        content = {JSON: {"schema": known.answer}, **content}
    made = {str(status): {"description": text, "content": error} for status, text in ERRORS.items()}
    for status in known.statuses:
        made[str(status)] = {"description": "Success", "content": content}
        if (
            status in ERRORS and known.answer is not None
        ):  # such as the status of an appliance that is stopping
            schemas = {"anyOf": [known.answer, ref(ERROR_NAMES[route.dialect])]}
            made[str(status)] = {"description": ERRORS[status], "content": {JSON: {"schema": schemas}}}
    return dict(sorted(made.items()))
