"""entrypoint.sh: sourced, it runs nothing; run, it takes its steps in order, here with fake programs."""

import os
import subprocess
from pathlib import Path

import pytest

from appliance.command_lines import VERBS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "entrypoint.sh"
OF_THE_STATE = ("migrate", "users", "keys", "credits", "prices", "admin")  # they use the state folder
NET_ADMIN, SETGID, SETUID, SETPCAP = 12, 6, 7, 8

RECORD = """#!/bin/bash
printf '%s' "${0##*/}" >>"$CALLS"; printf ' %s' "$@" >>"$CALLS"; printf '\\n' >>"$CALLS"
"""
PYTHON = (
    RECORD
    + """
[ "$3" != "$FAILING" ] || exit "$FAILING_WITH"
[ "$3" != serve ] || echo "HOME $HOME" >>"$CALLS"
"""
)
TINI = RECORD + 'shift 2; exec "$@"\n'
SETPRIV = RECORD + 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'


class Stage:
    """A PATH of stand-ins in front of the real one, and the list of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        self.state = folder / "state"
        self.state.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name, text in {"python3": PYTHON, "tini": TINI, "setpriv": SETPRIV}.items():
            self.put(name, text)

    def put(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def bash(
        self,
        script: str,
        *,
        user: int = 1000,
        failing: str = "",
        failing_with: int = 0,
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        self.put("id", f'#!/bin/sh\n[ "$1" = -u ] && echo {user}\n')
        environ = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "STATE_DIR": str(self.state),
            "FAILING": failing or "-",
            "FAILING_WITH": str(failing_with),
            **more,
        }
        return subprocess.run(
            ["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=30, check=False
        )

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the script as a container would."""
        return self.bash(f"exec {SCRIPT} {' '.join(arguments)}", **more)  # type: ignore[arg-type]

    def as_root(
        self, *capabilities: int, failing: str = "", failing_with: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """Source the script, let root have those capabilities and no others, and begin to serve."""
        pattern = "|".join(map(str, capabilities)) or "none"
        return self.bash(
            f"source {SCRIPT}; "
            f"has_capability() {{ case $1 in {pattern}) return 0;; *) return 1;; esac; }}; main serve",
            user=0,
            failing=failing,
            failing_with=failing_with,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_sourcing_runs_nothing_and_defines_functions(stage: Stage) -> None:
    done = stage.bash(f"source {SCRIPT}; declare -F main service_user has_capability")
    assert done.returncode == 0
    assert done.stdout.split() == ["main", "service_user", "has_capability"]
    assert stage.calls == []


@pytest.mark.parametrize("arguments", [(), ("serve",)], ids=["nothing", "serve"])
def test_plain_user_checks_prepares_and_serves(stage: Stage, arguments: tuple[str, ...]) -> None:
    assert stage.run(*arguments).returncode == 0
    assert stage.calls == [
        "python3 -m appliance check",
        "python3 -m appliance prepare",
        "tini -s -- python3 -m appliance serve",
        "python3 -m appliance serve",
        f"HOME {stage.state}/home",
    ]


def test_unwritable_state_folder_leaves_tmp_as_home(stage: Stage) -> None:
    (stage.state / "home").write_text("not a folder")
    stage.run("serve")
    assert stage.calls[-1] == "HOME /tmp"


@pytest.mark.parametrize(("step", "code", "ran"), [("check", 78, 1), ("prepare", 1, 2)])
def test_failed_step_stops_the_start_with_its_code(stage: Stage, step: str, code: int, ran: int) -> None:
    assert stage.run("serve", failing=step, failing_with=code).returncode == code  # type: ignore[arg-type]
    assert stage.calls == ["python3 -m appliance check", "python3 -m appliance prepare"][:ran]


def test_root_drops_privileges_before_it_serves(stage: Stage) -> None:
    done = stage.as_root(SETGID, SETUID, NET_ADMIN)
    down = (
        "setpriv --reuid=10001 --regid=10001 --init-groups --no-new-privs "
        "--inh-caps=-all --ambient-caps=-all --"
    )
    assert stage.calls == [
        f"{down} python3 -m appliance check",
        "python3 -m appliance check",
        "python3 -m appliance prepare",
        f"{down} {SCRIPT} become-server",
    ]
    # our setpriv changes nothing, and the server's last step notices
    assert "must not run as root" in done.stderr
    assert done.returncode == 77


def test_root_with_setpcap_empties_the_bounding_set_too(stage: Stage) -> None:
    stage.as_root(SETGID, SETUID, SETPCAP)
    assert all(" --bounding-set=-all --" in call for call in stage.calls if call.startswith("setpriv"))
    assert any(call.startswith("setpriv") for call in stage.calls)


@pytest.mark.parametrize("capabilities", [(), (SETUID,), (SETGID,)], ids=["none", "setuid", "setgid"])
def test_root_that_cannot_drop_privileges_is_told_what_to_add(
    stage: Stage, capabilities: tuple[int, ...]
) -> None:
    done = stage.as_root(*capabilities)
    assert done.returncode == 77
    assert "--cap-add SETUID --cap-add SETGID" in done.stderr
    assert stage.calls == []


@pytest.mark.parametrize(("step", "code"), [("check", 78), ("prepare", 1)])
def test_failed_step_stops_the_start_as_root(stage: Stage, step: str, code: int) -> None:
    assert stage.as_root(SETGID, SETUID, failing=step, failing_with=code).returncode == code
    assert not any("become-server" in call for call in stage.calls)


@pytest.mark.parametrize(
    "arguments",
    [
        *((verb,) for verb in VERBS if verb not in ("serve", "sidecar", *OF_THE_STATE) and " " not in verb),
        ("settings", "--json"),
        ("ctl", "status"),
        ("help",),
        ("--help",),
    ],
)
def test_verb_is_run_alone(stage: Stage, arguments: tuple[str, ...]) -> None:
    stage.run(*arguments, user=0)  # type: ignore[arg-type]
    assert stage.calls[-1] == f"python3 -m appliance {' '.join(arguments)}"
    assert len(stage.calls) == 2  # tini, and the verb


DOWN = (
    "setpriv --reuid=10001 --regid=10001 --init-groups --no-new-privs --inh-caps=-all --ambient-caps=-all "
    "--bounding-set=-all --"
)


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (("aiserve-gpuproxy-admin", "users"), []),
        (("aiserve-gpuproxyd", "-dv"), ["python3 -m appliance prepare"]),
        *((("python3", "-m", "appliance", verb), []) for verb in OF_THE_STATE),
    ],
)
@pytest.mark.parametrize("user", [0, 1000])
def test_programs_of_accounts_run_as_the_servers_user(
    stage: Stage, user: int, arguments: tuple[str, ...], before: list[str]
) -> None:
    words = " ".join(arguments)
    if arguments[0] != "python3":
        stage.put(arguments[0], RECORD)
    given = words.removeprefix("python3 -m appliance ")
    stage.bash(f"source {SCRIPT}; has_capability() {{ return 0; }}; main {given}", user=user)
    down = [f"{DOWN} {SCRIPT} become-program {words}"] if user == 0 else []
    assert stage.calls == [*before, *down, f"tini -s -- {words}", words]


@pytest.mark.parametrize("program", ["aiserve-gpuproxy-admin", "aiserve-gpuproxyd"])
def test_programs_of_accounts_never_run_as_root(stage: Stage, program: str) -> None:
    done = stage.bash(f"source {SCRIPT}; has_capability() {{ return 1; }}; main {program}", user=0)
    assert done.returncode == 77
    assert stage.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--engine", "vllm", "--engine-base-url", "http://host.docker.internal:8000"),
        ("--engine=sglang",),
        ("-E", "vllm"),
        ("-P", "9001", "-E", "vllm"),
    ],
)
def test_options_of_the_sidecar_without_its_verb_are_the_sidecars(
    stage: Stage, arguments: tuple[str, ...]
) -> None:
    stage.run(*arguments)
    assert stage.calls[-1] == f"python3 -m appliance sidecar {' '.join(arguments)}"


def test_what_is_no_program_is_left_to_the_appliance_to_refuse(stage: Stage) -> None:
    done = stage.run("serv", "--now", failing="serv", failing_with=2)
    assert done.returncode == 2
    assert stage.calls == ["python3 -m appliance serv --now"]


def test_other_commands_are_executed_with_their_output_and_code(stage: Stage) -> None:
    done = stage.run("sh", "-c", "'echo out; echo err >&2; exit 7'")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert not any(call.startswith("python3") for call in stage.calls)


@pytest.mark.parametrize(
    ("mask", "number", "is_there"),
    [
        ("00000000000010c0", SETGID, True),
        ("00000000000010c0", SETUID, True),
        ("00000000000010c0", SETPCAP, False),
        ("00000000000010c0", NET_ADMIN, True),
        ("0000000000000000", SETUID, False),
        ("000001ffffffffff", SETPCAP, True),
    ],
)
def test_capabilities_are_read_from_the_effective_set(
    stage: Stage, mask: str, number: int, is_there: bool
) -> None:
    status = stage.folder / "status"
    status.write_text(
        f"Name:\tbash\nCapInh:\tffffffffffffffff\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\nCapBnd:\tffffffffffffffff\n"
    )
    function = SCRIPT.read_text().replace("/proc/self/status", str(status))
    copy = stage.folder / "copy.sh"
    copy.write_text(function)
    assert (stage.bash(f"source {copy}; has_capability {number}").returncode == 0) is is_there
