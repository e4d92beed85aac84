"""The web UI in a real Chromium, in front of the real appliance: what people do, and what must not happen to them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.accounts.parts import PASSWORD, SECRET
from tests.journeys.browser import Page, browsing
from tests.journeys.running import Running, Start, free_port, until

CLIENT, OPERATOR = "client-key-1", "operator-key-1"
TEXT = "document.body.innerText"
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browsing(tmp_path) as page:
        await page.resize(1280, 900)
        yield page


def has(text: str) -> str:
    """Return a script that says whether a text is shown."""
    return f"{TEXT}.toLowerCase().includes({json.dumps(text.lower())})"


def button(label: str, *, within: str = "document") -> str:
    """Return a script that finds a button by its words or its label."""
    return (
        f"[...{within}.querySelectorAll('button, a.button')].find(one => !one.disabled && "
        f"(one.innerText.trim() === {json.dumps(label)} || one.getAttribute('aria-label') === {json.dumps(label)}))"
    )


async def click(page: Page, label: str, *, within: str = "document") -> None:
    found = button(label, within=within)
    await page.wait(f"Boolean({found})", label)
    await page.value(f"{found}.click()")


async def write(page: Page, selector: str, text: str) -> None:
    await page.wait(f"Boolean(document.querySelector({json.dumps(selector)}))", selector)
    await page.value(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.focus(); field.value = "
        f"{json.dumps(text)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); return 1; }})()"
    )


def own_complaints(page: Page, *, but: Callable[[str], bool] = lambda text: False) -> list[Any]:
    return [one for one in page.complaints if not but(json.dumps(one))]


def only_own_host(page: Page, running: Running) -> None:
    foreign = [
        one for one in page.requested if not one.startswith((running.base_url + "/", "data:", "about:"))
    ]
    assert foreign == []


async def test_a_browser_at_the_root_finds_the_first_steps(start: Start, page: Page) -> None:
    running = await start()
    await page.open(running.base_url + "/")
    await page.wait(has("What should answer?"))
    await page.wait(has(f"{running.base_url}/v1"))
    assert await page.value("location.pathname") == "/ui/"
    assert not own_complaints(page)
    only_own_host(page, running)
    async with httpx.AsyncClient() as http:
        assert (await http.get(running.base_url + "/")).text == "Ollama is running"


async def test_a_chat_in_the_playground_and_its_receipt(start: Start, page: Page) -> None:
    running = await start()
    await page.open(running.base_url + "/ui/#/playground")
    await write(page, "textarea[aria-label=Message]", f"Hello {HOSTILE}")
    await click(page, "Send")
    await page.wait(has("first word"))
    assert await page.value("document.title") == "Playground – Appliance"
    await click(page, "Why there?")
    await page.wait("Boolean(document.querySelector('dialog[open]'))")
    await page.wait("document.querySelector('dialog[open]').innerText.includes('/v1/chat/completions')")
    await click(page, "Close")
    await page.open(running.base_url + "/ui/#/requests")
    await page.wait("document.querySelectorAll('tbody tr').length === 1")
    assert (
        await page.value("document.querySelectorAll('#app img:not([src=\"icon.svg\"]), #app script').length")
        == 0
    )
    assert not own_complaints(page)
    only_own_host(page, running)


async def test_the_code_of_a_request_runs(start: Start, page: Page) -> None:
    running = await start()
    await page.open(running.base_url + "/ui/#/playground")
    await click(page, "Code")
    await page.wait("document.querySelectorAll('.copyline code').length === 3")
    curl, python, script = await page.value(
        "[...document.querySelectorAll('.copyline code')].map(one => one.innerText)"
    )
    process = await asyncio.create_subprocess_shell(
        curl.replace("curl ", "curl -s ", 1),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert json.loads(out)["choices"][0]["message"]["content"]
    compile(python, "snippet", "exec")
    assert "new OpenAI" in script


async def test_a_client_key_sees_no_page_of_operators(start: Start, page: Page) -> None:
    running = await start(APPLIANCE_API_KEYS=CLIENT, OPERATOR_API_KEYS=OPERATOR)
    await page.open(running.base_url + "/ui/")
    await write(page, "input[name=key]", "wrong-key")
    await click(page, "Sign in")
    await page.wait(has("Unknown API key."))
    await write(page, "input[name=key]", CLIENT)
    await click(page, "Sign in")
    await page.wait(has("· client"))
    await page.open(running.base_url + "/ui/#/backends")
    await page.wait(has("This is for operators"))
    assert CLIENT not in await page.value("JSON.stringify(sessionStorage) + JSON.stringify(localStorage)")
    await page.open(running.base_url + "/ui/#/signin")
    await write(page, "input[name=key]", OPERATOR)
    await click(page, "Sign in")
    await page.wait(has("· operator"))
    await page.open(running.base_url + "/ui/#/backends")
    await page.wait(has("Add a backend"))
    await click(page, "Sign out")
    await page.wait("Boolean(document.querySelector('input[name=key]'))")
    assert not own_complaints(page, but=lambda text: "401" in text or "ERR_ABORTED" in text)


async def test_hostile_answers_and_names_make_no_element(start: Start, page: Page, hosted: Any) -> None:
    running = await start()
    async with httpx.AsyncClient() as http:
        await http.post(
            running.base_url + "/v1/chat/completions",
            json={"model": HOSTILE, "messages": [{"role": "user", "content": "x"}]},
        )
        await http.post(running.base_url + "/v1/embeddings", json={"model": HOSTILE, "input": HOSTILE})
    await page.open(running.base_url + "/ui/")
    await page.wait("document.querySelectorAll('tbody tr').length >= 2")
    for at in range(2):
        await page.value(f"document.querySelectorAll('tbody button.link')[{at}].click()")
        await page.wait("Boolean(document.querySelector('dialog[open]'))")
        await click(page, "Close")
        await page.wait("!document.querySelector('dialog')")
    assert await page.value("document.title") == "Overview – Appliance"
    assert (
        await page.value("document.querySelectorAll('#app img:not([src=\"icon.svg\"]), #app script').length")
        == 0
    )
    assert not own_complaints(page)


async def test_a_page_finds_the_appliance_again(start: Start, page: Page) -> None:
    port = str(free_port())
    first = await start(PROXY_PORT=port)
    await page.open(first.base_url + "/ui/")
    await page.wait(has("Live"))
    server = first.appliance.ui_feed
    assert server is not None
    server.close()
    await page.wait("document.documentElement.dataset.connection === 'lost'")
    server.closed.clear()
    await page.wait("document.documentElement.dataset.connection === 'live'")


async def test_models_are_loaded_pinned_and_unloaded(managed: Any, page: Page) -> None:
    models = await managed("first", "second")
    base_url = models.running.base_url
    await page.open(base_url + "/ui/#/models")
    row = "document.querySelectorAll('.model-row')[0]"
    await click(page, "Load", within=row)
    await page.wait(f"{row}.innerText.includes('Ready')")
    await click(page, "Pin: never unload it for another model", within=row)
    await page.wait(f"Boolean({button('Unpin', within=row)})")
    await click(page, "Unload", within=row)
    await page.wait(f"{row}.innerText.includes('Not loaded')")
    async with httpx.AsyncClient() as http:
        marks = (await http.get(base_url + "/ui/api/history")).json()["marks"]
    assert [one["status"] for one in marks if one["model"] == "first"][-1] == "off"
    assert "ready" in {one["status"] for one in marks}
    assert not own_complaints(page)


ACCOUNTS = {
    "ACCOUNTS": "1",
    "REGISTRATION": "open",
    "JWT_SECRET": SECRET,
    "OPERATOR_API_KEYS": OPERATOR,
}
ADA = {"email": "ada@example.org", "password": PASSWORD, "name": HOSTILE[:60]}


async def test_a_user_makes_a_key_uses_it_and_sees_the_cost(start: Start, page: Page) -> None:
    running = await start(**ACCOUNTS)
    async with httpx.AsyncClient(base_url=running.base_url) as http:
        made = await http.post("/api/v1/auth/register", json=ADA)
        user_id, operator = made.json()["user"]["id"], {"x-api-key": OPERATOR}
        prices = {"prices": [{"model": "*", "in": 1, "out": 10}]}
        assert (await http.put("/api/v1/admin/prices", json=prices, headers=operator)).status_code == 200
        granted = await http.post(
            f"/api/v1/admin/users/{user_id}/grant", json={"amount": 5, "note": "n"}, headers=operator
        )
        assert granted.status_code == 200
        await page.open(running.base_url + "/ui/")
        await write(page, "input[name=email]", ADA["email"])
        await write(page, "input[name=password]", ADA["password"])
        await click(page, "Sign in")
        await page.wait(has("· client"))
        await page.open(running.base_url + "/ui/#/keys")
        await write(page, "main input", HOSTILE[:50])
        await click(page, "Make a key")
        key = await page.wait("document.querySelector('.copyline code')?.innerText")
        body = {"messages": [{"role": "user", "content": "hello"}]}
        done = await http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
        assert done.status_code == 200
        for _ in range(100):  # it is settled in the background
            used = await http.get("/api/v1/billing/usage", headers={"x-api-key": key})
            if used.json()["count"]:
                break
            await asyncio.sleep(0.1)
        await page.open(running.base_url + "/ui/#/usage")
        await page.wait(has("Spending by day"))
        await page.wait("document.querySelectorAll('svg rect').length === 1")
        await page.wait(has("$5.00"))
        await page.open(running.base_url + "/ui/#/keys")
        await click(page, "Revoke")
        await click(page, "Revoke", within="document.querySelector('dialog[open]')")
        await page.wait(has("Revoked"))
        refused = await http.post("/v1/chat/completions", json=body, headers={"x-api-key": key})
        assert refused.status_code == 401
    assert await page.value("document.title") == "API keys – Appliance"
    assert not own_complaints(page, but=lambda text: "ERR_ABORTED" in text)
    only_own_host(page, running)


async def test_an_administrator_finds_a_user_and_grants_credits(start: Start, page: Page) -> None:
    running = await start(**ACCOUNTS)
    async with httpx.AsyncClient(base_url=running.base_url) as http:
        operator = {"x-api-key": OPERATOR}
        made = await http.post("/api/v1/auth/register", json=ADA)
        path = f"/api/v1/admin/users/{made.json()['user']['id']}"
        assert (await http.patch(path, json={"is_admin": True}, headers=operator)).status_code == 200
        await page.open(running.base_url + "/ui/")
        await write(page, "input[name=email]", ADA["email"])
        await write(page, "input[name=password]", ADA["password"])
        await click(page, "Sign in")
        await page.wait(has("· operator"))
        await page.open(running.base_url + "/ui/#/users")
        await click(page, ADA["email"])
        await write(page, "dialog input[type=number]", "2.50")
        await click(page, "Grant", within="document.querySelector('dialog[open]')")
        await page.wait(has("$2.50 granted."))
        shown = (await http.get(path, headers=operator)).json()["credits"]
        assert shown["credits_remaining"] == 2.5
    assert not own_complaints(page, but=lambda text: "ERR_ABORTED" in text)


@pytest.mark.parametrize("width", [320, 1280])
async def test_no_page_scrolls_sideways(start: Start, page: Page, width: int) -> None:
    running = await start()
    await page.resize(width, 800, theme="dark")
    for name in ("", "models", "playground", "requests", "backends", "downloads"):
        await page.open("about:blank")
        await page.open(f"{running.base_url}/ui/#/{name}")
        await page.wait(
            "Boolean(document.querySelector('main h1')) && document.documentElement.dataset.connection === 'live'"
        )
        wide = await page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, name


async def test_without_a_web_ui_there_is_nothing_of_it(start: Start) -> None:
    running = await start(UI="0")
    async with httpx.AsyncClient() as http:
        root = await http.get(running.base_url + "/", headers={"accept": "text/html"})
        assert (root.status_code, root.text) == (200, "Ollama is running")
        assert (await http.get(running.base_url + "/ui/")).status_code == 404
        assert (await http.get(running.base_url + "/ui/api/me")).status_code == 404
    assert running.appliance.ui_feed is None


async def test_an_open_page_does_not_hold_up_the_end(start: Start) -> None:
    running = await start()
    async with (
        httpx.AsyncClient(timeout=10) as http,
        http.stream("GET", running.base_url + "/ui/api/feed") as feed,
    ):
        lines = feed.aiter_lines()
        await until(lambda: True)
        assert await anext(lines) == ": heartbeat"
        assert running.appliance.ui_feed is not None
        running.appliance.ui_feed.close()
        rest = [line async for line in lines]
    assert rest[-3:-1] == ["event: bye", 'data: {"reason":"stopping"}'] or "event: bye" in rest
