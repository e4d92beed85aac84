"""The request log of a running appliance: who asked for what, and how it ended."""

import hashlib

import httpx

from tests.fakes.hosted_api import KEY, HostedApi
from tests.journeys.running import Start

BODY = {"messages": [{"role": "user", "content": "Hello"}]}


async def test_receipts_say_who_asked_and_for_which_model(start: Start, hosted: HostedApi) -> None:
    running = await start(
        NOVITA_API_KEY=KEY,
        NOVITA_OPENAI_ENDPOINTS=hosted.base_url,
        APPLIANCE_API_KEYS="client-key-1,client-key-2",
        OPERATOR_API_KEYS="operator-key",
        MODEL_STRICT="1",
    )
    names = {key: hashlib.sha256(key.encode()).hexdigest()[:12] for key in ("client-key-1", "client-key-2")}
    async with httpx.AsyncClient(base_url=running.base_url, timeout=20) as http:
        for key, model, status in (
            ("client-key-1", "", 200),
            ("client-key-1", "", 200),
            ("client-key-2", "no-such-model", 404),
            ("wrong-key", "", 401),
        ):
            headers = {"authorization": f"Bearer {key}"}
            response = await http.post(
                "/v1/chat/completions", json={**BODY, **({"model": model} if model else {})}, headers=headers
            )
            assert response.status_code == status

        http.headers["authorization"] = "Bearer operator-key"
        found = (await http.get("/receipts", params={"key": names["client-key-1"]})).json()
        assert [receipt["status"] for receipt in found["receipts"]] == [200, 200]
        (unknown,) = (await http.get("/receipts?status=404")).json()["receipts"]
        assert (unknown["model"], unknown["key"]) == ("no-such-model", names["client-key-2"])
        whole = await http.get("/receipts")
        assert [receipt["status"] for receipt in whole.json()["receipts"]] == [401, 404, 200, 200]
        assert not any(key in whole.text for key in (*names, "wrong-key", "operator-key"))
