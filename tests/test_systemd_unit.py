"""etc/systemd/appliance.service: systemd finds no fault in it, and it names what exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.front.settings import FrontSettings
from appliance.host.settings import HostSettings
from appliance.settings import known_variables

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "etc/systemd/appliance.service"
PROGRAM = "/opt/appliance/bin/appliance"


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))  # it must exist
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if copy.name in line]) == (0, [])


def test_its_variables_exist() -> None:
    names = {word.partition("=")[0] for line in values("Environment") for word in line.split()}
    assert names - {"HOME", "PYTHONUNBUFFERED"} <= known_variables()


def test_it_waits_longer_than_the_appliance_does() -> None:
    front, host = FrontSettings.from_env({}), HostSettings.from_env({})
    (stop_s,) = values("TimeoutStopSec")
    assert int(stop_s) >= front.shutdown_grace_s + host.worker_stop_grace_s + 30


def test_the_page_of_installation_names_what_it_names() -> None:
    page = (ROOT / "docs/install.md").read_text()
    (user,) = values("User")
    for text in (PROGRAM.rpartition("/")[0], "/etc/appliance/appliance.env", f"--system --user-group {user}"):
        assert text in page
