"""An appliance that kills itself at one of its steps with money: `python -m tests.journeys.killed_appliance`.

FAULT_POINT=journal.end:after:2 = by SIGKILL, after the second call of it. Steps: STEPS.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from appliance.__main__ import main
from appliance.accounts.journal import Journal
from appliance.accounts.usage import UsageStore
from appliance.accounts.wallets import Wallets
from appliance.engines.backends.server import EngineServer
from appliance.storage.database import Database

STEPS: dict[str, tuple[type, str]] = {
    "journal.begin": (Journal, "begin"),
    "journal.progress": (Journal, "progress"),
    "journal.end": (Journal, "end"),
    "journal.lease": (Journal, "lease"),
    "journal.settled": (Journal, "settled"),
    "wallets.lease": (Wallets, "lease"),
    "usage.settle": (UsageStore, "settle"),
    "database.run": (Database, "run"),
    "upstream.send": (EngineServer, "send"),
}


def kill_at(point: str) -> None:
    """Make this process kill itself at a point."""
    step, when, number = point.split(":")
    owner, name = STEPS[step]
    call, left = getattr(owner, name), int(number)

    def pass_point(is_before: bool) -> None:
        nonlocal left
        if is_before == (when == "before"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def plain(*arguments: Any, **options: Any) -> Any:
        pass_point(True)
        result = call(*arguments, **options)
        pass_point(False)
        return result

    async def waiting(*arguments: Any, **options: Any) -> Any:
        pass_point(True)
        result = await call(*arguments, **options)
        pass_point(False)
        return result

    setattr(owner, name, waiting if asyncio.iscoroutinefunction(call) else plain)


if __name__ == "__main__":
    kill_at(os.environ.pop("FAULT_POINT"))
    sys.exit(main(["serve"]))
