"""The signals of a serving process: SIGTERM and SIGINT stop it, SIGHUP reloads the settings."""

import asyncio
import os
import signal

from appliance.base.logs import get_logger
from appliance.lifecycle import Lifecycle

log = get_logger("signals")


def ignore_hangups() -> bool:
    """Ignore SIGHUP until `hold_hangups`: nothing is read yet that could be read again.

    Returns:
        Whether a hang-up of the terminal is to end the process, as it ends other programs: it was started
        from a terminal, and not with nohup.
    """
    was_ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN) is signal.SIG_IGN
    return has_terminal() and not was_ignored


def hold_hangups() -> asyncio.Event:
    """Return an event that SIGHUP sets, until `handle_signals`. Called inside the event loop.

    Ignoring it any longer would not do: processes that are started inherit that.
    """
    held = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, held.set)
    return held


def has_terminal() -> bool:
    """Whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def handle_signals(lifecycle: Lifecycle, *, held: asyncio.Event, ends_with_terminal: bool) -> None:
    """Handle the signals from now on. Called inside the event loop.

    Args:
        held: What `hold_hangups` returned; if it is set, SIGHUP is handled now.
        ends_with_terminal: What `ignore_hangups` returned.
    """
    loop = asyncio.get_running_loop()

    def hang_up() -> None:
        if ends_with_terminal and not has_terminal():
            log.info("terminal_closed")
            lifecycle.shutdown()
        else:
            lifecycle.reload_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.shutdown)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    if held.is_set():
        hang_up()
