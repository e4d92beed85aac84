"""The program in front of nvidia-smi: decides which tool responds, and hands over. Standard library only.

Pollers start it every second. A real tool gets everything by exec: arguments, streams, signals and the exit
code are its own, unchanged.
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
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)
NO_DRIVER_EXIT = 9


def find_real(path, own):
    """Find the real nvidia-smi: the first on `path` or in the usual places that is not this shim."""
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
    """Say whether a file is a copy of this shim, by the path that it contains."""
    try:
        with open(candidate, "rb") as file:
            return b"appliance/host/smi/shim.py" in file.read(1024)
    except OSError:
        return False


def has_real_gpu():
    """Say whether the driver has a device here, by the files that it makes."""
    try:
        return bool(os.listdir("/proc/driver/nvidia/gpus")) or os.path.exists("/dev/nvidia0")
    except OSError:
        return os.path.exists("/dev/nvidia0") or os.path.exists("/dev/dxg")


def decide(environ, real, real_gpu):
    """Decide which tool responds: (`real`, `simulated` or `none`, the environment that it uses).

    1. GPU_MODE, of the environment or as `prepare` saved it, is none   → none
    2. it is simulated, and there is no real GPU                        → simulated
    3. there is a real tool                                             → real: it knows best what is missing
    4. else                                                             → none
    """
    mode = (environ.get("GPU_MODE") or "").strip().lower()
    if not mode:
        saved = simulated.read_shim_state(environ)
        mode = str(saved.get("mode", "auto"))
        kept = saved.get("environ")
        if mode == "simulated" and isinstance(kept, dict):
            environ = {**kept, **environ}
        if mode == "none":  # a finding of `prepare`, not a setting: there may be a GPU by now
            mode = "auto"
    if mode == "none":  # 1
        return "none", environ
    if mode == "simulated" and not real_gpu:  # 2
        return "simulated", environ
    return ("real" if real is not None else "none"), environ  # 3, 4


def main(argv):
    """Respond, or become the real tool; return the exit code."""
    real = find_real(os.environ.get("PATH", ""), os.environ.pop("APPLIANCE_SHIM", ""))
    tool, environ = decide(os.environ, real, has_real_gpu())
    if tool == "real":
        os.execv(real, ["nvidia-smi", *argv])  # noqa: S606 - the tool that was asked for
    if tool == "simulated":
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
