"""The profiles of compose.yaml, each started; and the commands and the .env of Inference Engine Proxy."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.settings import described
from tests.image.box import Reply, answer_of, chat, docker, fresh_name
from tests.image.project import ROOT, Project
from tests.tools import tiny_models

KEY = "a-key-of-some-length"
BOTH = "http://llm-1:8080,http://llm-2:8080"
# A stand-in for the official image, which no test can rely on: Debian's nginx, and the same rule for templates.
NGINX = r"""
FROM python:3.13-slim-trixie
RUN apt-get update && apt-get install -y -qq --no-install-recommends nginx-light && rm -f /etc/nginx/sites-enabled/default
RUN printf '%s\n' 'import os, pathlib, re' \
  'text = pathlib.Path("/etc/nginx/templates/default.conf.template").read_text()' \
  'named = re.compile(os.environ["NGINX_ENVSUBST_FILTER"])' \
  'fill = lambda m: os.environ[m[1]] if named.search(m[1]) else m[0]' \
  'pathlib.Path("/etc/nginx/conf.d/default.conf").write_text(re.sub(r"\$\{(\w+)\}", fill, text))' \
  'os.execvp("nginx", ["nginx", "-g", "daemon off;"])' >/start.py
CMD ["python3", "/start.py"]
"""
# A stand-in for vLLM's image, which is large and needs a GPU: what it is started with, and what it is asked, are the same.
VLLM_SERVER = """\
import argparse, http.server, json

parser = argparse.ArgumentParser()
for name in ("--model", "--served-model-name", "--host"):
    parser.add_argument(name, required=True)
parser.add_argument("--port", type=int, required=True)
options = parser.parse_args()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        card = {"id": options.served_model_name, "object": "model", "owned_by": "vllm", "root": options.model}
        pages = {"/health": {}, "/version": {"version": "0.11.0"}, "/v1/models": {"object": "list", "data": [card]}}
        self.answer(200 if self.path in pages else 404, pages.get(self.path, {"detail": "Not Found"}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != options.served_model_name:
            return self.answer(404, {"error": {"message": "The model does not exist.", "code": 404}})
        text = "vLLM has " + options.model + " and got: " + body["messages"][-1]["content"]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": options.served_model_name}
        self.answer(200, reply | {"choices": [choice], "usage": usage})

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


http.server.ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""
VLLM = r"""
FROM python:3.13-slim-trixie
RUN apt-get update && apt-get install -y -qq --no-install-recommends curl
RUN printf '%s\n' LINES >/vllm.py
ENTRYPOINT ["python3", "/vllm.py"]
"""
NO_GPU = "services: {vllm: {deploy: !reset {}}}\n"
Begin = Callable[..., Project]


@pytest.fixture(scope="module")
def llama_image(image: str) -> str:
    """llama-server alone, as compose builds it."""
    name = f"{image.partition(':')[0]}-llama-server"
    docker(
        "build",
        "-q",
        "-t",
        name,
        "--target",
        "llama-server",
        "--build-arg",
        "LLAMA_SERVER=debian",
        str(ROOT),
        timeout_s=600,
    )
    return name


@pytest.fixture(scope="module")
def nginx_image(image: str) -> str:
    name = f"{image.partition(':')[0]}-nginx"
    docker("build", "-q", "-t", name, "-", text=NGINX, timeout_s=300)
    return name


@pytest.fixture(scope="module")
def vllm_image(image: str) -> str:
    name = f"{image.partition(':')[0]}-vllm"
    lines = " ".join(map(shlex.quote, VLLM_SERVER.splitlines()))
    docker("build", "-q", "-t", name, "-", text=VLLM.replace("LINES", lines), timeout_s=300)
    return name


@pytest.fixture(scope="module")
def models() -> Path:
    return tiny_models.ensure(tiny_models.cached_folder())


@pytest.fixture
def begin(image: str, llama_image: str, nginx_image: str) -> Iterator[Begin]:
    """Begin a project: begin(*profiles, files=[…], **variables). It is not up yet."""
    projects: list[Project] = []
    images = {"APPLIANCE_IMAGE": image, "LLAMA_IMAGE": llama_image, "NGINX_IMAGE": nginx_image}

    def make(*profiles: str, files: list[Path] | None = None, **variables: str) -> Project:
        projects.append(Project(image, files or [ROOT / "compose.yaml"], *profiles, **images | variables))
        return projects[-1]

    yield make
    for project in projects:
        project.close()


def test_a_folder_of_models_is_served(begin: Begin, models: Path) -> None:
    project = begin("models", MODEL_DIR=str(models)).up()
    body = chat("hello") | {"model": "tiny-chat"}
    assert (
        answer_of(project.ask("appliance", 14000, "POST", "/v1/chat/completions", body)) == tiny_models.REPLY
    )
    named = project.ask("appliance", 14000, "GET", "/v1/models").json["data"]
    assert {row["id"] for row in named} == {"tiny-chat", "tiny-embed", "tiny-rerank"}
    status = project.compose("exec", "-T", "appliance", "appliance", "ctl", "status").stdout
    assert "serving" in status
    assert "ready" in project.compose("exec", "-T", "appliance", "appliance", "models").stdout
    project.compose("restart", "appliance")  # the program is in a volume
    project.up()
    assert (
        answer_of(project.ask("appliance", 14000, "POST", "/v1/chat/completions", body)) == tiny_models.REPLY
    )


def test_without_the_profile_a_folder_of_models_is_told_what_it_lacks(begin: Begin, models: Path) -> None:
    project = begin(MODEL_DIR=str(models))
    project.compose("up", "-d", "--no-build", "--wait", is_checked=False)
    assert "llama-server not found in PATH" in project.compose("logs", "appliance").stdout


def all_there(health: Reply) -> bool:
    """Whether both servers answer; they are looked at every few seconds."""
    if health.status != 200:
        return False
    value = health.json
    return (value["status"], sorted(value["available_backends"])) == ("ok", BOTH.split(","))


def test_two_engines_stand_behind_the_appliance_and_nginx(begin: Begin, models: Path) -> None:
    variables = {"MODEL_DIR": str(models), "MODEL": "tiny-chat.gguf", "BACKENDS": BOTH, "EDGE_API_KEY": KEY}
    project = begin("engines", **variables).up()
    project.wait_for("edge", 80, "/health", all_there, KEY)
    body = chat("hello") | {"model": "tiny-chat.gguf"}
    assert project.ask("edge", 80, "POST", "/v1/chat/completions", body).status == 401
    reply = project.ask("edge", 80, "POST", "/v1/chat/completions", body, key=KEY)
    assert answer_of(reply) == tiny_models.REPLY
    assert project.ask("appliance", 14000, "GET", "/v1/models").status == 401  # the key guards this port, too


def test_the_hosted_api_is_behind_nginx(begin: Begin) -> None:
    """The hosted API is another appliance, with its demo engine."""
    far, name = begin(), fresh_name()
    far.up()
    project = begin("hosted", NOVITA_API_KEY=KEY, NOVITA_OPENAI_ENDPOINTS=f"http://{name}:14000/v1")
    project.up()
    docker("network", "connect", "--alias", name, f"{project.name}_default", far.container("appliance"))
    try:
        project.wait_for("edge", 80, "/healthz", lambda reply: reply.status == 200)
        reply = project.ask("edge", 80, "POST", "/v1/chat/completions", chat("hello"))
        assert answer_of(reply).startswith("[demo engine]")
        assert project.ask("edge", 80, "GET", "/healthz").json["demo"] is False
    finally:
        docker("network", "disconnect", f"{project.name}_default", far.container("appliance"))


def test_a_vllm_server_is_behind_nginx(begin: Begin, vllm_image: str, tmp_path: Path) -> None:
    """The command, the health check and the addresses of compose.yaml; a GPU is not reserved."""
    no_gpu = tmp_path / "vllm.yaml"
    no_gpu.write_text(NO_GPU)
    variables = {"VLLM_IMAGE": vllm_image, "BACKENDS": "http://vllm:8000", "MODEL": "org/model"}
    project = begin("vllm", files=[ROOT / "compose.yaml", no_gpu], SERVED_MODEL_NAME="own", **variables).up()
    there = ["http://vllm:8000"]
    health = project.wait_for(
        "edge", 80, "/health", lambda reply: reply.status == 200 and reply.json["available_backends"] == there
    )
    assert health.json["details"][0]["kind"] == "vllm"
    reply = project.ask("edge", 80, "POST", "/v1/chat/completions", chat("hello") | {"model": "own"})
    assert answer_of(reply) == "vLLM has org/model and got: hello"
    assert [row["id"] for row in project.ask("edge", 80, "GET", "/v1/models").json["data"]] == ["own"]


def test_without_any_setting_the_container_has_the_images_environment(begin: Begin, image: str) -> None:
    """A name without a value would take away what the image sets."""
    project = begin()
    project.compose("create", "--no-build")
    of_image = docker("inspect", "-f", "{{json .Config.Env}}", image).stdout
    environ = project.environ_of("appliance")
    assert {line: environ.get(line.partition("=")[0]) for line in json.loads(of_image)} == {
        line: line.partition("=")[2] for line in json.loads(of_image)
    }


def test_every_setting_reaches_the_container(begin: Begin) -> None:
    """Values from the shell; none may keep the appliance from starting, so this looks at what the container was given."""
    given = {
        name: f"value of {name}"
        for row in described(None, {})
        for name in [row.variable, *([f"{row.variable}_FILE"] if row.is_secret else [])]
        if name not in {"PROXY_PORT", "MODEL_DIR", "STATE_DIR"}
    }
    project = begin(PROXY_PORT="15000", **given)
    project.compose("create", "--no-build")
    environ = project.environ_of("appliance")
    assert {name: environ.get(name) for name in given} == given
    assert environ["PROXY_PORT"] == "15000"
    assert (environ["STATE_DIR"], environ["MODEL_DIR"]) == ("/var/lib/appliance", "")


@pytest.fixture
def dev_network() -> Iterator[None]:
    """`docker network create dev`, where there is none yet."""
    is_ours = docker("network", "inspect", "dev", is_checked=False).returncode != 0
    if is_ours:
        docker("network", "create", "dev")
    yield
    if is_ours:
        docker("network", "rm", "dev")


# What its guide says of changing the start parameters, with the rest that a server there needs.
CHANGED = """\
    command: >
      ./llama-server
      -m ${MODEL_DIR}/${MODEL}
      -c 8192
      -ngl 99
      --temp 0.2
      --host 0.0.0.0 --port 8080 --metrics --slots --jinja
"""


def test_commands_and_env_of_inference_engine_proxy(
    dev_network: None, begin: Begin, models: Path, tmp_path: Path
) -> None:
    clone, folder = tmp_path / "clone", tmp_path / "models"
    clone.mkdir()
    folder.mkdir(mode=0o755)  # the servers' user must reach it
    shutil.copy(models / "tiny-chat.gguf", folder)
    for name in ("compose.yaml", "docker-compose.llamacpp.yml", ".env.example", "etc"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, clone / name)
    shutil.copy(clone / ".env.example", clone / ".env")
    text = (clone / ".env").read_text().replace("/path/to/your/models", str(folder))
    (clone / ".env").write_text(text.replace("your-model-q4_0.gguf", "tiny-chat.gguf"))
    compose = (clone / "docker-compose.llamacpp.yml").read_text()
    changed = compose.replace("  llm-2:\n", f"{CHANGED}\n  llm-2:\n", 1)
    (clone / "docker-compose.llamacpp.yml").write_text(changed)
    project = begin(files=[clone / "docker-compose.llamacpp.yml"]).up()
    health = project.wait_for("nginx", 80, "/health", all_there).json
    assert set(health) >= {"status", "available_backends", "total_backends", "timestamp", "details"}
    command = json.loads(docker("inspect", project.container("llm-1")).stdout)[0]["Config"]["Cmd"]
    assert command[:3] == ["./llama-server", "-m", f"{folder}/tiny-chat.gguf"]
    body = chat("hello") | {"model": "tiny-chat.gguf"}
    for _ in range(4):  # by either server
        assert answer_of(project.ask("nginx", 80, "POST", "/v1/chat/completions", body)) == tiny_models.REPLY
    assert '"event":"serving"' in project.compose("logs", "proxy").stdout
    environ = project.environ_of("proxy")
    assert (environ["MAX_ALLOWED_REQUEST_QUEUE"], environ["BACKEND_TIMEOUT_SECONDS"]) == ("6", "300")
