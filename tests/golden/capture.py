"""What goes over the wire, taken from the running appliance: `python -m tests.golden.capture [--write] [AREA …]`.

Without --write it tells what differs from the files beside it. An area is one function, which starts its own appliance and gives a value
that is the same from run to run.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

from tests.golden import areas_control, areas_demo, areas_engines, areas_models

FOLDER = Path(__file__).parent
AREAS: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
    "openai": areas_demo.openai,
    "openai_strict": areas_demo.openai_strict,
    "responses": areas_demo.responses,
    "anthropic": areas_demo.anthropic,
    "ollama": areas_demo.ollama,
    "http": areas_demo.http,
    "keys": areas_demo.keys,
    "passthrough_off": areas_demo.passthrough_off,
    "hosted_relay": areas_engines.hosted_relay,
    "hosted_simulate": areas_engines.hosted_simulate,
    "hosted_auto": areas_engines.hosted_auto,
    "backends": areas_engines.backends,
    "full": areas_engines.full,
    "no_backend": areas_engines.no_backend,
    "circuit": areas_engines.circuit,
    "lora": areas_engines.lora,
    "models": areas_models.models,
    "downloads": areas_models.downloads,
    "descriptor": areas_control.descriptor,
    "control": areas_control.control,
    "control_keys": areas_control.control_keys,
    "control_engines": areas_control.control_engines,
    "settings": areas_control.settings,
    "command_line": areas_control.command_line,
    "sidecar": areas_control.sidecar,
}


def as_text(value: Any) -> str:
    """Write a record as its file has it."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def file_of(area: str) -> Path:
    return FOLDER / f"{area}.json"


def difference(area: str, found: str) -> str:
    """Tell what differs from the area's file; "" = nothing."""
    kept = file_of(area).read_text() if file_of(area).exists() else ""
    return "\n".join(
        unified_diff(kept.splitlines(), found.splitlines(), f"{area}.json", f"{area}, now", lineterm="", n=6)
    )


async def main(arguments: list[str]) -> int:
    """Take the areas that are named, or all; give 1 when one differs from its file."""
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # stand-ins that break off on purpose
    is_writing = "--write" in arguments
    named = [name for name in arguments if not name.startswith("-")] or list(AREAS)
    differs = False
    for area in named:
        began = time.monotonic()
        text = as_text(await AREAS[area]())
        told = difference(area, text)
        differs |= bool(told)
        print(
            f"{area}: {'differs' if told else 'the same'} ({time.monotonic() - began:.1f} s)", file=sys.stderr
        )
        if is_writing:
            file_of(area).write_text(text)
        elif told:
            print(told)
    return int(differs and not is_writing)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
