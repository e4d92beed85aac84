"""What is in the image, and what is not: no compiler, no installer, no cache, no secret."""

import json

import pytest

from tests.image.box import docker

LOOK = r"""
import json, os, re, sys
# The other one is printable: compiled code has any bytes. user:password is what an error tells to write.
key = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}|://(?!user:password@)(?:(?![/:@])[!-~])+:(?:(?![/:@])[!-~])+@")
bad = []
for top in ("/opt", "/etc", "/root", "/home", "/usr/local", "/srv", "/var/lib/appliance", "/tmp"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if name in (".env", ".netrc", ".git", ".git-credentials", ".pypirc", "id_rsa") or name.endswith(".key"):
                bad.append(path)
            elif "/site-packages/" not in path or "/site-packages/appliance/" in path:
                try:
                    if os.path.isfile(path) and key.search(open(path, "rb").read()):
                        bad.append(path)
                except OSError:
                    bad.append(path)
print(json.dumps(bad))
"""


def shell(image: str, script: str) -> str:
    return docker("run", "--rm", "--entrypoint", "sh", image, "-c", script).stdout


@pytest.mark.parametrize(
    "program", ["gcc", "cc", "ld", "make", "pip", "pip3", "git", "curl", "wget", "nft", "iptables"]
)
def test_a_program_that_serving_does_not_need_is_not_there(image: str, program: str) -> None:
    assert shell(image, f"command -v {program} || true") == ""


def test_the_command_is_on_path(image: str) -> None:
    assert docker("run", "--rm", "--entrypoint", "appliance", image, "version").stdout.startswith("0.")


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("aiserve-gpuproxyd", "usage: aiserve-gpuproxyd"),
        ("aiserve-gpuproxy-admin", "GPU Proxy Admin Utility"),
        ("aiserve-gpuproxy-client", "GPU Proxy Client"),
    ],
)
def test_the_programs_of_accounts_are_on_path(image: str, program: str, text: str) -> None:
    assert text in docker("run", "--rm", "--entrypoint", program, image, "-h").stdout


@pytest.mark.parametrize("module", ["pip", "setuptools", "grpc_tools", "pytest"])
def test_neither_installer_nor_development_packages_are_there(image: str, module: str) -> None:
    done = docker("run", "--rm", "--entrypoint", "python3", image, "-c", f"import {module}", is_checked=False)
    assert "ModuleNotFoundError" in done.stderr


def test_nothing_was_left_behind_by_the_build(image: str) -> None:
    left = shell(
        image,
        "ls -A /root/.cache /var/lib/apt/lists /src /tmp 2>/dev/null; find /opt/appliance -name '*.pyi' -o -name '*.pyx' | head",
    )
    assert [line for line in left.splitlines() if line and not line.endswith(":")] == []
    assert shell(image, "cat /etc/machine-id 2>/dev/null; true") == ""


def test_the_code_is_compiled_ahead(image: str) -> None:
    """The root may be read-only: what is not compiled now would be compiled at every start, and at every health check."""
    lacking = shell(
        image,
        "cd /opt/appliance/package && for f in *.py */*.py; do "
        '[ -e "$(dirname $f)/__pycache__/$(basename $f .py).cpython-313.pyc" ] || echo $f; done',
    )
    assert lacking == ""


def test_no_secret_is_in_the_image(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert not [
        line
        for line in config["Env"]
        if any(word in line.partition("=")[0] for word in ("KEY", "TOKEN", "SECRET", "PASS"))
        and not line.startswith("GPG_KEY=")
    ]  # the official base image's: the fingerprint of Python's release key
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert not any(word in history for word in ("NOVITA_API_KEY", "PRIVATE KEY", "password"))
    assert (
        json.loads(docker("run", "--rm", "-i", "--entrypoint", "python3", image, "-", text=LOOK).stdout) == []
    )


def test_only_the_state_folder_belongs_to_the_service(image: str) -> None:
    owned = shell(image, "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o -user 10001 -print")
    assert owned.split() == ["/var/lib/appliance"]


def test_the_image_says_how_it_is_run(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"] == {"14000/tcp": {}}
    assert config["Volumes"] == {"/var/lib/appliance": {}}
    assert config["Healthcheck"]["Test"][-1] == "healthcheck"
