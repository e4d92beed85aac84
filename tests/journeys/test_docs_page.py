"""GET /docs in a real Chromium, steered over its DevTools protocol: it shows every address, and asks no other host."""

import asyncio
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.journeys.running import Start

# A sandbox of its own is not to be had as root; the others keep the browser from asking its maker's servers anything.
SWITCHES = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *(
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-component-update",
    ),
    *("--disable-sync", "--remote-debugging-port=0"),
]
# What the page shows: the lines of each of its components.
LINES = """(() => {
  const found = [];
  const walk = node => {
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) child.nodeType === 3 ? found.push(child.data.trim()) : walk(child);
  };
  walk(document.body);
  return found.filter(Boolean);
})()"""
INSIDE = "document.querySelector('rapi-doc').shadowRoot"
SECTIONS = f"[...{INSIDE}.querySelectorAll('.nav-bar-paths-under-tag')]"
CUT_OFF = f"{SECTIONS}.filter(one => one.scrollHeight > one.clientHeight + 1).map(one => one.innerText)"
TRY = f"{INSIDE}.querySelector('api-request').shadowRoot.querySelector('button[part~=btn-try]').click()"


class Page:
    """One page of a browser.

    Attributes:
        requested: The address of each request that it made.
        complaints: Errors and warnings that it caused, and statuses from 400 on.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.requested: list[str] = []
        self.complaints: list[Any] = []

    async def read(self) -> None:
        """Take what the browser says, until it ends."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._replies.pop(said["id"]).set_result(said)
            else:
                self._note(said["method"], said["params"])

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requested.append(values["request"]["url"])
        is_wrong = {
            "Network.responseReceived": lambda: values["response"]["status"] >= 400,
            "Network.loadingFailed": lambda: True,
            "Log.entryAdded": lambda: values["entry"]["level"] in ("error", "warning"),
            "Runtime.exceptionThrown": lambda: True,
            "Runtime.consoleAPICalled": lambda: values["type"] in ("error", "warning", "assert"),
        }
        if event in is_wrong and is_wrong[event]():
            self.complaints.append(values)

    async def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": values})
        said = await asyncio.wait_for(reply, 30)
        assert "error" not in said, said
        return dict(said["result"])

    async def value(self, script: str) -> Any:
        """Return what a script comes to; None where it fails."""
        return (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get(
            "value"
        )

    async def shows(self, text: str) -> list[str]:
        """Wait until a text is shown; return all lines."""
        lines: list[str] = []
        for _ in range(300):
            lines = await self.value(LINES) or []
            if text in lines:
                break
            await asyncio.sleep(0.1)
        assert text in lines, (lines[:100], self.complaints)
        return lines


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """Open an empty page in a Chromium of its own; skip the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium in PATH (Debian: apt-get install chromium)")
    profile = folder / "profile"
    browser = subprocess.Popen(
        [program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "browser.log").open("wb"),
    )
    try:
        async with asyncio.timeout(60):
            while not (profile / "DevToolsActivePort").exists() or not (
                where := (profile / "DevToolsActivePort").read_text().split()
            ):
                assert browser.poll() is None, (folder / "browser.log").read_text()[-2000:]
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{where[0]}/json/list") as answer:
                address = next(one for one in await answer.json() if one["type"] == "page")
            async with http.ws_connect(address["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                reading = asyncio.create_task(page.read())
                for part in ("Network", "Log", "Runtime", "Page"):
                    await page.call(f"{part}.enable")
                yield page
                reading.cancel()
    finally:
        browser.terminate()
        browser.wait(20)


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
