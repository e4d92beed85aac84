"""The simulated nvidia-smi: parses its arguments and prints what a machine with such GPUs would print.

Standard library only. Every name that it prints ends in ` (simulated)`: names come from `simulated.list_gpus`
alone, and the narrow cell of the table cuts the name, never the mark.

Source:
    Observed output and exit codes of the real tool, drivers 550 to 610.
"""

import os
import signal
import sys
import time
from contextlib import contextmanager

from appliance.host.smi import fields, report, simulated, table
from appliance.host.smi import help as smi_help

CUDA = "12.8"
BAD_ARGUMENT, NOT_FOUND, NOT_SUPPORTED = 2, 6, 3
SUBCOMMANDS = {
    "topo",
    "dmon",
    "pmon",
    "nvlink",
    "mig",
    "drain",
    "clocks",
    "encodersessions",
    "fbcsessions",
    "daemon",
    "replay",
    "vgpu",
    "compute-policy",
    "boost-slider",
    "power-hint",
    "conf-compute",
    "c2c",
    "power-smoothing",
    "gpm",
    "pci",
}
SECTIONS = {
    "MEMORY",
    "UTILIZATION",
    "ECC",
    "TEMPERATURE",
    "POWER",
    "CLOCK",
    "COMPUTE",
    "PIDS",
    "PERFORMANCE",
    "SUPPORTED_CLOCKS",
    "PAGE_RETIREMENT",
    "ACCOUNTING",
    "ENCODER_STATS",
    "SUPPORTED_GPU_TARGET_TEMP",
    "VOLTAGE",
    "FBC_STATS",
    "ROW_REMAPPER",
    "RESET_STATUS",
    "GSP_FIRMWARE_VERSION",
    "POWER_SMOOTHING",
}
TAKES = {
    "-i": "id",
    "--id": "id",
    "-f": "file",
    "--filename": "file",
    "-l": "loop",
    "--loop": "loop",
    "-lms": "loop_ms",
    "--loop-ms": "loop_ms",
    "-d": "display",
    "--display": "display",
    "--format": "format",
    **{f"--query-{q}": f"query:{q}" for q in fields.QUERIES},
}
SWITCHES = {
    "-q": "q",
    "--query": "q",
    "-x": "x",
    "--xml-format": "x",
    "-L": "list",
    "--list-gpus": "list",
    "--version": "version",
    "-h": "help",
    "--help": "help",
    "-a": "q",
    **{f"--help-query-{q}": f"help:{q}" for q in fields.QUERIES},
}


class GpuRow:
    """A simulated GPU with the numbers of an idle one."""

    def __init__(self, identity, count):
        self.index, self.name = identity.index, identity.name
        self.uuid, self.bus_id = identity.uuid, identity.bus_id
        self.memory_mib, self.driver, self.count = identity.memory_mib, identity.driver, count
        self.reserved_mib = min(fields.RESERVED_MIB, self.memory_mib // 4)
        self.used_mib = min(fields.USED_MIB, self.memory_mib)
        self.free_mib = max(0, self.memory_mib - self.reserved_mib - self.used_mib)


class InvalidArgument(Exception):
    """The arguments are not valid; `text` goes to stdout, as with the real tool.

    Args:
        text: What is printed.
        code: The exit code.
    """

    def __init__(self, text, code):
        super().__init__(text)
        self.text, self.code = text, code


def parse(argv):
    """Parse the arguments into {option: value}; both `--option=value` and `--option value` are accepted.

    Raises:
        InvalidArgument: With the tool's text and exit code.
    """
    given = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in TAKES:
            if not equals:
                if not rest:
                    raise InvalidArgument(
                        f"Option \"{name}\" is missing its value.\nPlease run 'nvidia-smi -h' for help.\n\n",
                        BAD_ARGUMENT,
                    )
                value = rest.pop(0)
            given[TAKES[name]] = value
        elif name == "-l" or (name in {"--loop"} and not rest):
            given["loop"] = "5"
        elif word in SWITCHES:
            given[SWITCHES[word]] = ""
        else:
            raise InvalidArgument(
                "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n"
                f"Unrecognized argument: {word}\n"
                if not word.startswith("-")
                else f"Option \"{word}\" is not recognized.\nPlease run 'nvidia-smi -h' for help.\n\n",
                BAD_ARGUMENT,
            )
    return given


def select_gpus(gpus, wanted):
    """Return the GPUs that `-i` names by index, UUID or bus id, in their own order; None = all.

    Raises:
        InvalidArgument: There is no such GPU.
    """
    if wanted is None:
        return gpus
    found = []
    for name in (piece.strip() for piece in wanted.split(",")):
        match = [
            g
            for g in gpus
            if name == str(g.index) or name.lower() == g.uuid.lower() or _same_bus(name, g.bus_id)
        ]
        if not match:
            raise InvalidArgument("No devices were found\n", NOT_FOUND)
        found += match
    return [g for g in gpus if g in found]


def _same_bus(name, bus_id):
    """Say whether a name means a bus id; its domain may be left out, or be written with fewer digits."""
    if not all(letter in "0123456789abcdef:." for letter in name.lower()):
        return False
    head, _, tail = name.lower().rpartition(":")
    domain, _, bus = head.rpartition(":")
    if not head or f"{bus}:{tail}" != bus_id.lower().partition(":")[2]:
        return False
    return ":" not in head or int(domain.partition(":")[0] or "0", 16) == int(bus_id.partition(":")[0], 16)


def render_query(name, given, gpus):
    """Render the output of a --query-… option."""
    form = given.get("format")
    if form is None:
        raise InvalidArgument(
            "\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.\n\n", BAD_ARGUMENT
        )
    words = [w.strip() for w in form.split(",")]
    if "csv" not in words:
        raise InvalidArgument(
            "Only \"csv\" format is supported. Please run 'nvidia-smi -h' for help.\n\n", BAD_ARGUMENT
        )
    for word in words:
        if word not in {"csv", "noheader", "nounits"}:
            raise InvalidArgument(f'"{word}" is not a valid format option.\n\n', BAD_ARGUMENT)
    columns = []
    for field in (f.strip() for f in given[f"query:{name}"].split(",")):
        found = fields.find(name, field)
        if found is None:
            raise InvalidArgument(f'Field "{field}" is not a valid field to query.\n\n', BAD_ARGUMENT)
        columns.append(found)
    lines = []
    if "noheader" not in words:
        lines.append(", ".join(primary + (f" [{unit}]" if unit else "") for primary, unit, _ in columns))
    # The other queries list nothing: no process runs on a simulated GPU, and no page or row of it is bad.
    for gpu in gpus if name == "gpu" else []:
        cells = [(value(gpu) if callable(value) else value, unit) for _, unit, value in columns]
        lines.append(
            ", ".join(
                text if "nounits" in words or not unit or text.startswith("[") else f"{text} {unit}"
                for text, unit in cells
            )
        )
    return "".join(line + "\n" for line in lines)


def render(given, gpus):
    """Render what one round prints."""
    queries = [key.partition(":")[2] for key in given if key.startswith("query:")]
    if queries:
        return render_query(queries[0], given, select_gpus(gpus, given.get("id")))
    if "format" in given:
        raise InvalidArgument(
            "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n", BAD_ARGUMENT
        )
    if "list" in given:
        return "".join(
            f"GPU {g.index}: {g.name} (UUID: {g.uuid})\n" for g in select_gpus(gpus, given.get("id"))
        )
    if "q" in given or "x" in given or "display" in given:
        if "q" not in given:
            raise InvalidArgument(
                "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n",
                BAD_ARGUMENT,
            )
        sections = None
        if "display" in given:
            sections = [s.strip().upper() for s in given["display"].split(",")]
            for section in sections:
                if section not in SECTIONS:
                    raise InvalidArgument(
                        f"Invalid display type: {section}\nPlease run 'nvidia-smi -h' for help.\n\n",
                        BAD_ARGUMENT,
                    )
        rows = select_gpus(gpus, given.get("id"))
        if "x" in given:
            return report.render_xml(rows, count=len(gpus), cuda=CUDA)
        return report.render_text(rows, count=len(gpus), cuda=CUDA, sections=sections)
    return table.render(select_gpus(gpus, given.get("id")), cuda=CUDA)


def parse_pause(given):
    """Return the seconds between rounds; None = a single round."""
    for key, scale in (("loop_ms", 0.001), ("loop", 1.0)):
        if key in given:
            try:
                number = int(given[key])
            except ValueError:
                number = 0
            if number <= 0:
                raise InvalidArgument(
                    f"Invalid loop interval: {given[key]}\nPlease run 'nvidia-smi -h' for help.\n\n",
                    BAD_ARGUMENT,
                )
            return number * scale
    return None


@contextmanager
def opening_output(given):
    """Yield the file of `-f`, or stdout."""
    if "file" not in given:
        yield sys.stdout
        return
    try:
        file = open(given["file"], "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError:
        raise InvalidArgument(
            f"Error: cannot open file {given['file']} for writing.\n", BAD_ARGUMENT
        ) from None
    with file:
        yield file


def main(argv, environ):
    """Print what was asked for; return the exit code."""
    identities = simulated.list_gpus(environ)
    gpus = [GpuRow(identity, len(identities)) for identity in identities]
    if argv and argv[0] in SUBCOMMANDS:
        sys.stdout.write(f"nvidia-smi {argv[0]}: not available on a simulated GPU.\n")
        return NOT_SUPPORTED
    try:
        given = parse(argv)
        for key in given:
            if key.startswith("help"):
                sys.stdout.write(
                    smi_help.render_fields(key.partition(":")[2]) if ":" in key else smi_help.USAGE
                )
                return 0
        if "version" in given:
            driver = gpus[0].driver
            sys.stdout.write(
                f"NVIDIA-SMI version  : {driver}\n"
                f"NVML version        : {driver.rpartition('.')[0] or driver}\n"
                f"DRIVER version      : {driver}\n"
                f"CUDA Version        : {CUDA}\n"
            )
            return 0
        pause_s = parse_pause(given)
        if pause_s is not None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        with opening_output(given) as out:
            while True:
                out.write(render(given, gpus))
                out.flush()
                if pause_s is None:
                    return 0
                time.sleep(pause_s)
    except InvalidArgument as refused:
        sys.stdout.write(refused.text)
        return refused.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
