"""Passwords of command lines: typed, piped in, or taken out of the list of processes."""

import ctypes
import getpass
import sys
from pathlib import Path

from appliance.admin.flags import WrongUsage

FROM_INPUT = "-"
MAX_CHARS = 4096
NOTE = (
    "note: every user of this machine could read the password among the arguments for a moment; "
    "give - instead, and the password on standard input."
)


def read_password(word: str, *, is_new: bool = True) -> str:
    """Return the password that a word of the command line stands for.

    1. `-`, and a terminal   → it is asked for; a new one twice
    2. `-`                   → the first line of standard input
    3. anything else         → the word itself

    Raises:
        WrongUsage: There is none, or the two differ.
    """
    if word != FROM_INPUT:  # 3
        print(NOTE, file=sys.stderr)
        return word
    if sys.stdin.isatty():  # 1
        password = getpass.getpass("Password: ")
        if is_new and getpass.getpass("Again: ") != password:
            raise WrongUsage("the two passwords differ")
    else:  # 2
        password = sys.stdin.readline(MAX_CHARS).rstrip("\r\n")
    if not password:
        raise WrongUsage("there is no password on standard input")
    return password


def hide_argument(word: str) -> None:
    """Overwrite a word among the arguments that other processes see, where that is possible.

    Linux alone: /proc says where this process has them.
    """
    if not word or word == FROM_INPUT:
        return
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5), less pid and comm
        if not 0 < start < end:
            return
        memory = ctypes.string_at(start, end - start)
        secret = word.encode("utf-8", "surrogateescape")
        at = memory.rfind(b"\0" + secret + b"\0")
        if at >= 0:
            ctypes.memset(start + at + 1, ord("*"), len(secret))
    except (OSError, ValueError, IndexError):
        return
