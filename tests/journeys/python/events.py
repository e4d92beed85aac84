"""The official `websockets` client at /ws: three ways to say who it is, what the original answers, an event, a chat.

Arguments   the appliance's address, {key, token, operator, user_id}
"""

import asyncio
import json
import sys
import urllib.request

from websockets.asyncio.client import connect

BASE, OPTIONS = sys.argv[1], json.loads(sys.argv[2])
WS = BASE.replace("http", "ws", 1) + "/ws"


def grant(amount: int) -> None:
    request = urllib.request.Request(
        f"{BASE}/api/v1/admin/users/{OPTIONS['user_id']}/grant",
        json.dumps({"amount": amount}).encode(),
        {
            "x-api-key": OPTIONS["operator"],
            "content-type": "application/json",
            "idempotency-key": f"g{amount}",
        },
    )
    urllib.request.urlopen(request).read()


async def ask(socket, **message):
    await socket.send(json.dumps(message))
    return json.loads(await socket.recv())


async def main() -> dict:
    found = {}
    async with connect(WS, additional_headers={"X-API-Key": OPTIONS["key"]}) as socket:
        found["header"] = await ask(socket, type="subscribe")
        found["pong"] = await ask(socket, type="ping")
        await asyncio.to_thread(grant, 3)
        found["event"] = json.loads(await socket.recv())
        await socket.send(
            json.dumps(
                {
                    "type": "chat",
                    "id": "c1",
                    "body": {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 20},
                }
            )
        )
        text, last = "", {}
        while last.get("type") not in {"done", "error"}:
            last = json.loads(await socket.recv())
            if last["type"] == "chunk":
                text += (last["data"]["choices"] or [{"delta": {}}])[0]["delta"].get("content") or ""
        found["chat"], found["chat_end"] = text, last
    async with connect(WS, subprotocols=[f"bearer.{OPTIONS['token']}"]) as socket:
        found["subprotocol"] = await ask(socket, type="subscribe", topics=["sessions"], after=0)
        found["session"] = json.loads(await socket.recv())
    async with connect(WS, subprotocols=["appliance.events", f"bearer.{OPTIONS['token']}"]) as socket:
        found["chosen"] = socket.subprotocol
    async with connect(WS) as socket:
        found["message"] = await ask(socket, type="auth", token=OPTIONS["key"])
        found["again"] = await ask(socket, type="subscribe", topics=["billing"], after=0)
        found["replayed"] = json.loads(await socket.recv())
    return found


print(json.dumps(asyncio.run(main())))
