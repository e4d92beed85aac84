"""`appliance simulate`: the stand-ins as a process, until Ctrl-C or SIGTERM."""

import argparse
import asyncio
import signal
import sys
from typing import Any

from appliance.base import jsons, logs
from appliance.base.errors import Invalid
from appliance.base.money import parse_musd, shorten
from appliance.simulate.loopback import is_loopback
from appliance.simulate.stripe_webhooks import check_url
from appliance.simulate.twin import SERVICES, Twin, TwinOptions, running_twin

TITLES = {"vast": "vast.ai", "ionet": "io.net", "novita": "Novita", "stripe": "Stripe", "chain": "Chain"}
MAX_OFFERS = 2000
MAX_SPEED = 100_000


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Serve until a signal; return 0, or 1 where a port cannot be used."""
    wanted = read_options(options, parser)
    logs.configure(level="info", form="auto", stream=sys.stderr)
    try:
        asyncio.run(_serve(wanted, options))
    except OSError as exc:
        print(f"appliance simulate: {exc.strerror or exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the handler of signals was there
        pass
    return 0


def read_options(options: argparse.Namespace, parser: argparse.ArgumentParser) -> TwinOptions:
    """Read the command line; where it is wrong, print why and exit with 2."""
    if not is_loopback(options.host):
        parser.error(
            f"--host {options.host}: allowed are addresses of this machine alone, such as 127.0.0.1 or ::1; "
            "anyone who reaches a stand-in can change what it says"
        )
    ports = {name: getattr(options, name) for name in SERVICES if getattr(options, name) is not None}
    for name, port in ports.items():
        if not 0 <= port <= 65_535:
            parser.error(f"--{name} {port}: allowed are ports from 0 (any free one) to 65535")
    numbers = [port for port in ports.values() if port]
    if twice := [port for port in numbers if numbers.count(port) > 1]:
        parser.error(f"port {twice[0]} is given to two services; give each its own, or 0 for a free one")
    try:
        credit_musd = parse_musd(options.credit)
    except ValueError as exc:
        parser.error(f"--credit: {exc}")
    for name, least, most in (("speed", 0, MAX_SPEED), ("start_s", 0, 86_400), ("offers", 1, MAX_OFFERS)):
        if not least <= getattr(options, name) <= most:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} {shorten(getattr(options, name))}: allowed are {least} to {most}")
    try:
        webhook = check_url(options.stripe_webhook) if options.stripe_webhook else ""
    except Invalid as exc:
        parser.error(f"--stripe-webhook: {exc}")
    return TwinOptions(
        ports or dict.fromkeys(SERVICES, 0),
        credit_musd=credit_musd,
        offers=options.offers,
        seed=options.seed,
        created_s=options.start_s / 6,
        loading_s=options.start_s * 5 / 6,
        speed=options.speed,
        stripe_webhook=webhook,
    )


async def _serve(wanted: TwinOptions, options: argparse.Namespace) -> None:
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with running_twin(wanted, host=options.host) as twin:
        print(jsons.dumps_text(as_object(twin)) if options.json else as_table(twin), flush=True)
        await end.wait()


def as_object(twin: Twin) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {"simulated": True, "urls": twin.urls, "ports": twin.ports, "environ": twin.environ}


def as_table(twin: Twin) -> str:
    """Return what is printed for people."""
    rows = [f"  {TITLES[name]:9} {url}" for name, url in twin.urls.items()]
    lines = [f"export {name}={value}" for name, value in twin.environ.items()]
    control = next(iter(twin.origins.values()))
    return "\n".join(
        [
            "SIMULATED services: nothing here is real, and nothing costs money.",
            "",
            *rows,
            "",
            "The appliance uses them with:",
            "",
            *lines,
            "",
            f"What really runs, and its cost: curl {control}/_truth",
            f"What can go wrong:              curl {control}/_fault",
            "Ctrl-C ends it, with everything that it has in memory.",
        ]
    )
