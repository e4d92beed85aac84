"""`python -m appliance.status_server`: the status port as a process of its own, from `model_status.json`.

    python -m appliance.status_server [--port 8001] [--host 127.0.0.1] [--file STATE_DIR/model_status.json]

It answers /health, /status, /status/{alias} and /status/stream before the appliance is up and after it has
ended. STATUS_PORT is the same inside the appliance. For compatibility, see docs/compatibility.md.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from appliance.base.clock import SystemClock
from appliance.base.settings import InvalidSettings
from appliance.front.pipeline.origins import Origins
from appliance.front.status_file_feeds import StatusFileFeeds
from appliance.front.status_listener import serving_status
from appliance.models.status.file import FILE_NAME
from appliance.settings import Settings, load_or_raise


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        "status_server", description="Show the status of an appliance's models, from its status file."
    )
    parser.add_argument("--port", type=int, default=8001, help="port (8001)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--file", type=Path, help=f"the file (STATE_DIR/{FILE_NAME})")
    return parser


async def serve(settings: Settings, *, host: str, port: int, path: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: The address cannot be used; it is in the text.
    """
    clock, stopped = SystemClock(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    feeds = StatusFileFeeds(path, clock=clock)
    serving = serving_status(
        lambda: None, clock=clock, host=host, port=port, origins=Origins(settings.front), feeds=feeds
    )
    async with serving as (bound_host, bound_port):
        print(f"The status of {path} is at http://{bound_host}:{bound_port}/status", flush=True)  # noqa: T201
        await stopped.wait()


def main(arguments: list[str]) -> int:
    """Read the command line and serve; return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65_535:
        parser.error(f"--port must be from 0 to 65535, not {options.port}")
    try:
        settings, _ = load_or_raise()
        path = options.file or settings.host.state_dir / FILE_NAME
        asyncio.run(serve(settings, host=options.host, port=options.port, path=path))
    except (InvalidSettings, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201 - there is no log here
        return os.EX_CONFIG if isinstance(exc, InvalidSettings) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
