"""Which boot of the machine this is: process ids and unsynced bytes mean nothing in another one."""

from pathlib import Path


def boot_id() -> str:
    """Return the kernel's id of this boot; "" = unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
