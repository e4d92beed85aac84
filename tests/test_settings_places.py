"""Checks of the addresses and folders that settings name."""

import json
import os
import socket
from pathlib import Path

import pytest

from appliance.base.settings import Problem
from appliance.engines.specs import BackendSpec, FleetSpec
from appliance.front.settings import FrontSettings
from appliance.settings import load
from appliance.settings_addresses import check_own_addresses, is_own_address
from appliance.settings_folders import check_folders


def found(tmp_path: Path, **environ: str) -> dict[str, Problem]:
    """Return the problems of an environment by variable."""
    _, problems = load({"STATE_DIR": str(tmp_path / "state"), **environ})
    return {problem.variable: problem for problem in problems}


# ---- the appliance's own address


@pytest.mark.parametrize(
    ("url", "host", "is_own"),
    [
        ("http://127.0.0.1:14000", "127.0.0.1", True),
        ("http://localhost:14000", "127.0.0.1", True),
        ("http://LOCALHOST:14000/v1", "127.0.0.1", True),
        ("http://127.0.0.2:14000", "127.0.0.1", True),
        ("http://[::1]:14000", "127.0.0.1", True),
        ("http://0.0.0.0:14000", "127.0.0.1", True),
        ("http://me.localhost:14000", "localhost", True),
        ("http://127.0.0.1:14000", "0.0.0.0", True),
        ("http://[::1]:14000", "::", True),
        (f"http://{socket.gethostname()}:14000", "0.0.0.0", True),
        ("http://llm:14000", "llm", True),
        ("http://127.0.0.1:14001", "127.0.0.1", False),
        ("http://127.0.0.1", "127.0.0.1", False),
        ("http://llm:14000", "127.0.0.1", False),
        ("http://llm:14000", "0.0.0.0", False),
        ("http://192.0.2.1:14000", "0.0.0.0", False),
        ("http://192.0.2.1:14000", "192.0.2.2", False),
        ("http://127.0.0.1:14000", "192.0.2.2", False),
    ],
)
def test_an_own_address_is_known_in_all_its_spellings(url: str, host: str, is_own: bool) -> None:
    assert is_own_address(url, proxy_host=host, proxy_port=14000) is is_own


def test_the_port_of_the_scheme_counts() -> None:
    assert is_own_address("http://localhost", proxy_host="127.0.0.1", proxy_port=80)


def test_a_backend_that_is_the_appliance_is_refused(tmp_path: Path) -> None:
    problem = found(tmp_path, BACKENDS="http://llm:1,http://localhost:14000/v1")["BACKENDS"]
    assert problem.is_fatal
    assert str(problem) == (
        "BACKENDS=http://localhost:14000: allowed: addresses of other servers. This is the appliance's own address "
        "(127.0.0.1:14000): each request would come back to it. Name the engine's address, or set PROXY_PORT to "
        "another port."
    )
    assert "BACKENDS" not in found(tmp_path, BACKENDS="http://localhost:14000", PROXY_PORT="14001")


def test_a_backend_of_the_file_and_a_hosted_endpoint_are_looked_at_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"backends": [{"url": "http://127.0.0.1:14000"}]}')
    assert found(tmp_path, CONFIG_PATH=str(file))["BACKENDS"].is_fatal
    endpoint = {"NOVITA_OPENAI_ENDPOINTS": "http://127.0.0.1:14000/v1"}
    assert found(tmp_path, NOVITA_API_KEY="sk_0123456789", **endpoint)["NOVITA_OPENAI_ENDPOINTS"].is_fatal
    assert "NOVITA_OPENAI_ENDPOINTS" not in found(tmp_path, **endpoint)  # it is not asked


def test_every_own_address_is_listed() -> None:
    fleet = FleetSpec(backends=(BackendSpec(url="http://localhost:1"), BackendSpec(url="http://[::1]:1")))
    problems = check_own_addresses(fleet, [], proxy_host="::", proxy_port=1)
    assert [problem.value for problem in problems] == ["http://localhost:1", "http://[::1]:1"]


@pytest.mark.parametrize("host", ["foo bar", "a b:80", "a<b", "${HOST}", "[::g]", "a,b"])
def test_what_is_no_host_of_a_server_is_refused(tmp_path: Path, host: str) -> None:
    for variable, url in (("BACKENDS", f"http://{host}"), ("NOVITA_OPENAI_ENDPOINTS", f"http://{host}/v1")):
        if variable == "BACKENDS" and "," in host:
            continue  # two entries
        problem = found(tmp_path, **{variable: url})[variable]
        assert problem.is_fatal
        assert problem.value == url
        assert "http" in problem.allowed
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"backends": [{"url": f"http://{host}"}]}))
    assert found(tmp_path, CONFIG_PATH=str(file))["CONFIG_PATH"].is_fatal


@pytest.mark.parametrize(
    "url",
    ["llm", "http://llm_1.ns.svc:80", "http://[fe80::1%25eth0]:80", "https://bücher.example", "1.2.3.4:5"],
)
def test_hosts_of_servers_are_taken(tmp_path: Path, url: str) -> None:
    assert found(tmp_path, BACKENDS=url) == {}


@pytest.mark.parametrize(
    ("variable", "value", "is_taken"),
    [
        *(
            ("CORS_ORIGINS", value, True)
            for value in (
                *("*", "null", "https://app.example", "https://app.example/", "http://localhost:3000"),
                *("http://[::1]:80", "tauri://localhost", "app://.", "HTTPS://App.Example"),
            )
        ),
        *(
            ("CORS_ORIGINS", value, False)
            for value in (
                *("foo", "app.example", "https://app.example/path", "https://*.example", "http://a b"),
                *("http://a:99999", "https://", "https://me:word@app.example", "file://"),
            )
        ),
        *(
            ("ALLOWED_HOSTS", value, True)
            for value in ("*", "models.example.com", "*.example.com", "10.0.0.1", "::1")
        ),
        *(
            ("ALLOWED_HOSTS", value, False)
            for value in ("http://x", "x:80", "x/y", "*x", "a b", "*.", "*.*.example", "[::1]")
        ),
    ],
)
def test_what_no_browser_or_client_sends_is_refused(
    tmp_path: Path, variable: str, value: str, is_taken: bool
) -> None:
    problems = found(tmp_path, **{variable: f"https://good.example,{value}" if "CORS" in variable else value})
    assert (variable not in problems) == is_taken
    if not is_taken:
        assert problems[variable].is_fatal
        assert "word@" not in str(problems[variable])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://me:geheim@p.test:port", "http://***@p.test:port"),
        ("me:geheim@p.test:port", "***@p.test:port"),
        ("http://me:geheim", "(hidden)"),
        ("socks5://p.test", "socks5://p.test"),
        ("a b", "a b"),
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_unusable_proxy_is_a_warning(tmp_path: Path, variable: str, value: str, shown: str) -> None:
    problem = found(tmp_path, **{variable: value})[variable]
    assert not problem.is_fatal
    assert problem.value == shown
    assert "geheim" not in str(problem)
    assert f"{variable} " in problem.remedy
    assert "downloads from hosts that are not in NO_PROXY fail" in problem.remedy
    assert found(tmp_path, **{variable: "http://me:geheim@p.test:80"}) == {}


# ---- folders


@pytest.mark.parametrize("variable", ["STATE_DIR", "DOWNLOAD_DIR", "MODEL_LOG_DIR"])
@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, variable: str, below: str) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    problem = found(tmp_path, **{variable: str(plain / below)})[variable]
    assert problem.is_fatal
    assert problem.remedy == f"{plain} is no folder. Name another path, or move it away."


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert check_folders({"STATE_DIR": link})[0].is_fatal


@pytest.mark.parametrize("folder", ["/proc/x", "/proc", "/sys/x/y"])
def test_a_folder_among_what_the_kernel_shows_is_refused(folder: str) -> None:
    problem = check_folders({"STATE_DIR": Path(folder)})[0]
    assert problem.is_fatal
    assert problem.remedy.startswith(f"No file can be made in {folder[:5].rstrip('/x')}")


def test_a_folder_that_is_there_or_can_be_made_is_fine(tmp_path: Path) -> None:
    assert check_folders({"A": tmp_path, "B": tmp_path / "new/er", "C": None}) == []


@pytest.mark.parametrize("below", ["", "new"])
def test_a_folder_without_the_right_to_write_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (problem,) = check_folders({"STATE_DIR": tmp_path / below})
    assert not problem.is_fatal
    what = f"It cannot be made in {tmp_path}" if below else "It cannot be written to"
    assert problem.remedy.startswith(f"{what} by this user (uid {os.geteuid()}): nothing is kept")


def test_a_model_folder_without_a_model_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "README.md").touch()
    problem = found(tmp_path, MODEL_DIR=str(folder))["MODEL_DIR"]
    assert not problem.is_fatal
    assert problem.remedy.startswith("There is no model file (.gguf) in it")


# ---- others


def test_a_code_without_a_worker_is_named(tmp_path: Path) -> None:
    problem = found(tmp_path, CODE="abc-secret-code")["CODE"]
    assert not problem.is_fatal
    assert "Set WORKER=kuzco" in str(problem)
    assert "abc-secret" not in str(problem)
    assert "CODE" not in found(tmp_path, CODE="abc-secret-code", WORKER="kuzco", CONTROL_TOKEN="x" * 20)
    assert "CODE" not in found(tmp_path, CODE="abc", WORKER_COMMAND="true", CONTROL_TOKEN="x" * 20)


def test_yaml_in_a_file_for_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("models:\n  a:\n    model_path: /m.gguf\n")
    problem = found(tmp_path, CONFIG_PATH=str(file))["CONFIG_PATH"]
    assert problem.is_fatal
    assert "This looks like YAML" in problem.remedy


@pytest.mark.parametrize(
    ("environ", "has_lines"),
    [
        ({}, True),
        ({"LOG_LEVEL": "debug"}, True),
        ({"LOG_LEVEL": "warning"}, False),
        ({"LOG_LEVEL": "error"}, False),
        ({"LOG_LEVEL": "warning", "ACCESS_LOG": "1"}, True),
        ({"ACCESS_LOG": "0"}, False),
    ],
)
def test_access_lines_follow_the_level_unless_they_are_set(
    tmp_path: Path, environ: dict[str, str], has_lines: bool
) -> None:
    settings, _ = load({"STATE_DIR": str(tmp_path), **environ})
    assert settings is not None
    assert settings.front.access_log is has_lines


@pytest.mark.parametrize("variable", ["PROXY_HOST", "SIDECAR_HOST", "STATUS_HOST", "CONTROL_HOST"])
@pytest.mark.parametrize(
    "host", ["999.1.1.1", "1.2.3", "2130706433", "http://x", "a b", "x:1", "[::1", "::g", "a/b", "x" * 254]
)
def test_what_cannot_be_listened_on_is_refused(tmp_path: Path, variable: str, host: str) -> None:
    problem = found(tmp_path, **{variable: host})[variable]
    assert problem.is_fatal
    assert str(problem) == (
        f"{variable}={host}: allowed: an IP address of this machine, or its name. "
        "This is neither an IP address, such as 127.0.0.1 or ::1, nor a name."
    )


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        *(
            (name, name)
            for name in ("127.0.0.1", "0.0.0.0", "::", "localhost", "pod_1.ns.svc", "4f2a", "fe80::1%eth0")
        ),
        ("[::1]", "::1"),
    ],
)
def test_addresses_and_names_are_listened_on(host: str, taken: str) -> None:
    assert FrontSettings.from_env({"PROXY_HOST": host}).proxy_host == taken
