"""An engine as a set of fixed pages, for tests of what is read from them; no network."""

import json
from typing import Any

from appliance.engines.dialects.contract import QueryReply

NOT_FOUND = (404, {"detail": "Not Found"})


class PageClient:
    """An EngineClient over pages.

    pages    path → (status, body, content type), where the body is a JSON value, a text or bytes; an exception
             is raised, a callable is called for each reply
    queried  the paths of all queries and commands; commands: those of POST, with their bodies
    """

    def __init__(self, pages: dict[str, Any] | None = None) -> None:
        self.pages = dict(pages or {})
        self.queried: list[str] = []
        self.commands: list[tuple[str, dict[str, Any]]] = []

    def page(self, path: str, status: int, body: Any = b"") -> "PageClient":
        """Put a page in place; return the client."""
        self.pages[path] = (status, body)
        return self

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        return self._reply(path)

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        self.commands.append((path, body))
        return self._reply(path)

    def _reply(self, path: str) -> QueryReply:
        self.queried.append(path)
        page = self.pages.get(path, NOT_FOUND)
        if callable(page):
            page = page()
        if isinstance(page, Exception):
            raise page
        status, body, *content_type = page
        if isinstance(body, str):
            body = body.encode()
        return QueryReply(
            status, body if isinstance(body, bytes) else json.dumps(body).encode(), *content_type
        )
