"""The addresses of the API's description: the document, and a page that shows it.

The page loads nothing from other hosts: its viewer is a file of this package (viewer/, with its licence).
"""

import asyncio
import gzip
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.resources import files
from typing import Any

from appliance.base import jsons
from appliance.base.errors import NotFound
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Route

PAGE, SCRIPT, LICENSE = "page.html", "rapidoc-min.js", "LICENSE.txt"
CACHED = ("Cache-Control", "public, max-age=86400")
# The viewer makes its own styles, and sends requests to this server alone.
POLICY = (
    "Content-Security-Policy",
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


class OpenApiHandlers:
    """The handlers of the description.

    Args:
        make_document: Returns the description of the addresses that are served; called once, when it is asked
            for first.
    """

    def __init__(self, make_document: Callable[[], dict[str, Any]]) -> None:
        self._make_document = make_document
        self._document = b""

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        read = partial(Route, ("GET",), access=Access.PUBLIC, is_open_while_draining=True)
        return [
            read("/openapi.json", self.document),
            read("/docs", self.page),
            read("/docs/{file}", self.viewer),
        ]

    async def document(self, request: Request) -> Response:
        """Describe the addresses of this server: OpenAPI 3.1."""
        self._document = self._document or jsons.dumps(self._make_document())
        return Response(body=self._document, headers=[("Access-Control-Allow-Origin", "*")])

    async def page(self, request: Request) -> Response:
        """Show the description of the addresses in a browser."""
        body = await asyncio.to_thread(read_file, PAGE)
        if request.path.endswith("/"):  # its addresses are relative, for proxies that serve it below a path
            body = body.replace(b'src="docs/', b'src="').replace(b'spec-url="', b'spec-url="../')
        return Response(body=body, content_type="text/html; charset=utf-8", headers=[POLICY])

    async def viewer(self, request: Request) -> Response:
        """Return a file of that page: the viewer, or its licence (LICENSE.txt)."""
        name = request.params["file"]
        if name == LICENSE:
            return Response(
                body=await asyncio.to_thread(read_file, name), content_type="text/plain; charset=utf-8"
            )
        if name != SCRIPT:
            raise NotFound(f"There is nothing at /docs/{name[:100]}; there are {SCRIPT} and {LICENSE}.")
        body = await asyncio.to_thread(read_file, f"{SCRIPT}.gz")
        headers = [CACHED, ("Vary", "Accept-Encoding")]
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers.append(("Content-Encoding", "gzip"))
        else:
            body = await asyncio.to_thread(gzip.decompress, body)
        return Response(body=body, content_type="text/javascript; charset=utf-8", headers=headers)


@lru_cache(maxsize=4)
def read_file(name: str) -> bytes:
    """Read a file of the viewer; it stays in memory (blocks)."""
    return files("appliance.front.openapi").joinpath("viewer", name).read_bytes()
