"""GET /docs in a real Chromium: it shows every address, and asks no other host."""

from pathlib import Path

import httpx

from tests.journeys.browser import browsing
from tests.journeys.running import Start

INSIDE = "document.querySelector('rapi-doc').shadowRoot"
SECTIONS = f"[...{INSIDE}.querySelectorAll('.nav-bar-paths-under-tag')]"
CUT_OFF = f"{SECTIONS}.filter(one => one.scrollHeight > one.clientHeight + 1).map(one => one.innerText)"
TRY = f"{INSIDE}.querySelector('api-request').shadowRoot.querySelector('button[part~=btn-try]').click()"


async def test_the_page_shows_every_address_and_asks_no_other_host(start: Start, tmp_path: Path) -> None:
    async with browsing(tmp_path) as page:
        running = await start()
        async with httpx.AsyncClient() as http:
            document = (await http.get(running.base_url + "/openapi.json")).json()
        await page.call("Page.navigate", url=running.base_url + "/docs")
        lines = await page.shows("/openapi.json")
        assert set(document["paths"]) <= set(lines)
        assert await page.value(CUT_OFF) == []
        await page.value(TRY)  # of the first address, /healthz
        await page.shows("OK:200")
    assert not page.complaints
    assert {
        one for one in page.requested if not one.startswith((running.base_url + "/", "data:", "about:"))
    } == set()
    assert f"{running.base_url}/healthz" in page.requested
