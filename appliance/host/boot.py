"""Which boot of this machine it is: what a process id, or bytes that were never synced, mean nothing beyond."""

from pathlib import Path


def boot_id() -> str:
    """Give the kernel's id of this boot; "" = it tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
