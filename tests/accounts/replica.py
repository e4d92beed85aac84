"""A replica of its own process: admits keys and tokens that it is asked about, line by line (JSON), until its input ends.

Arguments   the settings of its database and Redis (JSON), a folder
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from appliance.base.clock import SystemClock
from appliance.base.errors import ApplianceError
from appliance.base.tasks import Tasks
from appliance.storage.open import build_database
from appliance.storage.settings import StorageSettings
from tests.accounts.parts import identity_on


async def main() -> None:
    settings, folder = StorageSettings(**json.loads(sys.argv[1])), Path(sys.argv[2])
    async with Tasks() as tasks:
        database = build_database(settings, folder, tasks=tasks, clock=SystemClock())
        await database.open()
        async with identity_on(database, folder) as identity:
            loop = asyncio.get_running_loop()
            print(json.dumps({"keys": len(identity.snapshot.keys)}), flush=True)
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                asked = json.loads(line)
                headers = {"x-api-key": asked["key"]}
                end = time.monotonic() + asked["within_s"]
                while True:
                    try:
                        actor = identity.callers.admit(asked["level"], headers, "10.0.0.1")
                        if actor is None:
                            await identity.directory.look_up(headers, identity.callers)
                            actor = identity.callers.admit(asked["level"], headers, "10.0.0.1")
                        code = "" if actor is not None else "?"
                    except ApplianceError as error:
                        code = error.code
                    if code == asked["until"] or time.monotonic() > end:
                        break
                    await asyncio.sleep(0.005)
                print(json.dumps({"code": code, "left_s": end - time.monotonic()}), flush=True)
        await database.close()


asyncio.run(main())
