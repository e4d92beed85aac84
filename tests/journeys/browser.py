"""A real Chromium, steered over its DevTools protocol: `async with browsing(folder) as page`."""

import asyncio
import base64
import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

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

    async def wait(self, script: str, what: str = "") -> Any:
        """Wait until a script comes to something that is true; return it."""
        for _ in range(300):
            if found := await self.value(script):
                return found
            await asyncio.sleep(0.1)
        raise AssertionError((what or script, self.complaints, await self.value("document.body.innerText")))

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.navigate", url=url)

    async def resize(self, width: int, height: int, *, theme: str = "light") -> None:
        """Set the size of the window and the colours that the reader prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": theme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def picture(self, path: Path) -> None:
        """Write what is seen to a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

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
        reason = "there is no chromium in PATH (Debian: apt-get install chromium)"
        pytest.skip(reason)
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
