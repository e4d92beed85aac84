"""A web server by script: each path answers what a test says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from appliance.base.reach import FolderPolicy, HostPolicy
from appliance.downloads.sources.contract import SourceContext
from tests.downloads.engines import QUICK

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving_pages(pages: dict[str, Page]) -> AsyncIterator[str]:
    """Serve pages on loopback; yield the address."""
    app = web.Application()
    for path, page in pages.items():
        app.router.add_get(path, page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


def source_context(address: str, folder: Path | None = None, **config: str) -> SourceContext:
    """Return a context for a source that may reach every host, and read `folder`."""
    folders = FolderPolicy.listed([folder] if folder else [])
    return SourceContext(address, config, HostPolicy.unrestricted(), folders, QUICK)
