"""What stands before nvidia-smi: finds out who answers, and hands over. Standard library only; started every second by pollers.

A real tool gets everything by exec: arguments, streams, signals and the exit code are its own, untouched.
"""

import os
import sys

if __name__ == "__main__":  # run by path, isolated: make our own package findable, nothing else
    sys.path.insert(
        0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__)))))
    )

from appliance.host.smi import simulated

USUAL = (
    "/usr/bin/nvidia-smi",
    "/usr/local/nvidia/bin/nvidia-smi",
    "/usr/lib/wsl/lib/nvidia-smi",
    "/opt/bin/nvidia-smi",
)
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is "
    "installed and running.\n"
)
NO_DRIVER_EXIT = 9


def find_real(path, own):
    """Give the real nvidia-smi: the first on `path` or in the usual places that is not this shim, or None."""
    try:
        mine = os.stat(own) if own else None
    except OSError:
        mine = None
    for candidate in [
        *(os.path.join(folder, "nvidia-smi") for folder in path.split(os.pathsep) if folder),
        *USUAL,
    ]:
        try:
            found = os.stat(candidate)
        except OSError:
            continue
        if (
            not os.access(candidate, os.X_OK)
            or os.path.isdir(candidate)
            or (mine is not None and os.path.samestat(found, mine))
        ):
            continue
        if not _is_shim(candidate):
            return candidate
    return None


def _is_shim(candidate):
    """Whether a file is a copy of this shim: its first line and its own words say so."""
    try:
        with open(candidate, "rb") as file:
            return b"appliance/host/smi/shim.py" in file.read(1024)
    except OSError:
        return False


def has_real_gpu():
    """Whether the driver has a device here, told by the files it makes."""
    try:
        return bool(os.listdir("/proc/driver/nvidia/gpus")) or os.path.exists("/dev/nvidia0")
    except OSError:
        return os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg")


def decide(environ, real, real_gpu):
    """Say who answers: `real`, `simulated` or `none`, and the settings to answer by.

    1. GPU_MODE, of the environment or as `prepare` left it, is none     → none
    2. simulated, and no real GPU is here                                → simulated
    3. a real tool is here                                               → real: it knows best what is missing
    4. else                                                              → none
    """
    mode = (environ.get("GPU_MODE") or "").strip().lower()
    if not mode:
        left = simulated.read_shim_state(environ)
        mode = str(left.get("mode", "auto"))
        kept = left.get("environ")
        if mode == "simulated" and isinstance(kept, dict):
            environ = {**kept, **environ}
        mode = (
            "auto" if mode == "none" else mode
        )  # none then was found, not asked for: a GPU may be here by now
    if mode == "none":  # 1
        return "none", environ
    if mode == "simulated" and not real_gpu:  # 2
        return "simulated", environ
    return ("real" if real is not None else "none"), environ  # 3, 4


def main(argv):
    """Answer, or become the real tool; give the exit code."""
    real = find_real(os.environ.get("PATH", ""), os.environ.pop("APPLIANCE_SHIM", ""))
    who, environ = decide(os.environ, real, has_real_gpu())
    if who == "real":
        os.execv(real, ["nvidia-smi", *argv])  # noqa: S606 - the very tool that was asked for
    if who == "simulated":
        from appliance.host.smi import command as smi

        return smi.main(argv, environ)
    if argv and argv[0] in {"-h", "--help"}:
        from appliance.host.smi import help as smi_help

        sys.stdout.write(smi_help.USAGE)
        return 0
    sys.stdout.write(NO_DRIVER)
    return NO_DRIVER_EXIT


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
