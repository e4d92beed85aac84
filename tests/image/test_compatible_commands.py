"""Commands of Novita relay and Kthena runtime that build and run containers, as they stand in their guides (docs/compatibility.md).

Only names, ports and addresses are others. Those of Inference Engine Proxy are in test_profiles.py; requests without a container are in
tests/journeys/test_compatible_commands.py.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.box import Box, answer_of, chat, docker, fresh_name
from tests.image.project import ROOT, Project

BUILD_RELAY = "docker build -t myku:latest ."
RUN_RELAY = "docker run --rm -p 14000:14000 -e CODE=YOUR_INFERENCE_CODE -e NOVITA_API_KEY=YOUR_NOVITA_KEY --name kuzco-main myku:latest"
RUN_RELAY_REDIRECTED = "docker run --rm -p 14000:14000 --cap-add NET_ADMIN -e CODE=YOUR_INFERENCE_CODE -e NOVITA_API_KEY=YOUR_NOVITA_KEY --name kuzco-main myku:latest"
ASK_GPU = "nvidia-smi --query-gpu=uuid,pci.bus_id --format=csv,noheader,nounits"
# Its compose file: the guide names the keys; the build is that of the command above.
RELAY_COMPOSE = """
services:
  kuzco-main:
    image: myku:latest
    ports:
      - "14000:14000"
    environment:
      CODE: YOUR_INFERENCE_CODE
      NOVITA_API_KEY: YOUR_NOVITA_KEY
      PROXY_PORT: 14000
      KEEPALIVE: "1"
    cap_add:
      - NET_ADMIN
    restart: unless-stopped
"""
BUILD_RUNTIME = "docker build -t kthena-runtime:latest -f Dockerfile --target runtime ."
RUN_RUNTIME = r"""docker run --rm -p 9000:9000 \
  kthena-runtime:latest \
  --engine vllm \
  --engine-base-url http://host.docker.internal:8000 \
  --engine-metrics-path /metrics"""


class Named(Box):
    """A container that a command of a guide starts, which names it or not."""

    def __init__(self, image: str, command: str, *more: str) -> None:
        self.image, self.name = image, fresh_name()
        words = shlex.split(command.replace("\\\n", " "))
        assert words[:3] == ["docker", "run", "--rm"]
        if "--name" in words:
            words[words.index("--name") + 1] = self.name
        else:
            words[2:2] = ["--name", self.name]
        published = words.index("-p") + 1
        words[published] = f"127.0.0.1::{words[published].partition(':')[2]}"  # a port that is free
        named = next(at for at, word in enumerate(words) if word.endswith(":latest"))
        docker("run", "-d", *more, *words[2:named], image, *words[named + 1 :])


@pytest.fixture
def follow(image: str) -> Iterator[Callable[..., Named]]:
    """Run a container by a guide's command; it is removed with the test."""
    boxes: list[Named] = []

    def begin(command: str, *more: str) -> Named:
        boxes.append(Named(image, command, *more))
        return boxes[-1]

    yield begin
    for box in boxes:
        box.close()


@pytest.mark.parametrize("command", [BUILD_RELAY, BUILD_RUNTIME])
def test_the_build_commands_make_the_image(image: str, command: str) -> None:
    """What they make is the image under test: all its layers are there already."""
    name = fresh_name()
    words = shlex.split(command)[1:]
    words[words.index("-t") + 1] = name
    words[-1] = str(ROOT)
    if "-f" in words:
        words[words.index("-f") + 1] = str(ROOT / "Dockerfile")
    docker(*words, timeout_s=600)
    try:
        layers = "{{json .RootFS.Layers}}"
        assert docker("inspect", "-f", layers, name).stdout == docker("inspect", "-f", layers, image).stdout
    finally:
        docker("rmi", name)


@pytest.mark.parametrize(("command", "outcome"), [(RUN_RELAY, "listener"), (RUN_RELAY_REDIRECTED, "rule")])
def test_the_relays_run_command_serves(follow: Callable[..., Named], command: str, outcome: str) -> None:
    box = follow(command).wait_health()
    for port in (14000, 14444):
        health = box.ask("GET", "/healthz", port=port).json
        assert (health["ok"], health["demo"], health["nat"]["outcome"]) == (True, False, outcome)
        assert set(health) >= {"public_model", "upstream_base", "aliases", "novita_endpoints"}
    assert "Set WORKER=kuzco, or unset CODE." in box.logs()
    assert "YOUR_NOVITA_KEY" not in box.logs()


def test_the_relay_answers_through_the_hosted_api(follow: Callable[..., Named], image: str) -> None:
    """The hosted API is another container, with the demo engine."""
    far = Box(image, "-e", "PUBLIC_MODEL=meta-llama/llama-3.2-3b-instruct")
    try:
        far.wait_health()
        address = next(iter(far.inspect()["NetworkSettings"]["Networks"].values()))["IPAddress"]
        box = follow(RUN_RELAY, "-e", f"NOVITA_OPENAI_ENDPOINTS=http://{address}:14000/v1").wait_health()
        reply = box.ask("POST", "/v1/chat/completions", chat("Halo!") | {"model": "bebas-aja"})
        assert answer_of(reply) == "[demo engine] You said: Halo!"
        stream = box.ask("POST", "/v1/chat/completions", chat("Halo!", stream=True) | {"model": "apa-aja"})
        assert stream.text.rstrip().endswith("data: [DONE]")
    finally:
        far.close()


def test_the_relays_question_for_the_gpu(follow: Callable[..., Named]) -> None:
    """No GPU is here: it says so, as the real tool does; a simulated one is asked for by name."""
    box = follow(RUN_RELAY).wait_health()
    told = box.run(*shlex.split(ASK_GPU), is_checked=False)
    assert (told.returncode, told.stdout.startswith("NVIDIA-SMI has failed")) == (9, True)
    box = follow(
        RUN_RELAY, "-e", "GPU_MODE=simulated", "-e", "GPU_SPOOF_PCI_BUS_ID=00000000:65:00.0"
    ).wait_health()
    uuid, bus = box.run(*shlex.split(ASK_GPU)).stdout.strip().split(", ")
    assert uuid.startswith("GPU-")
    assert bus == "00000000:65:00.0"


def test_the_relays_compose_file(image: str, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        RELAY_COMPOSE.replace("myku:latest", image).replace('"14000:14000"', '"127.0.0.1::14000"')
    )
    project = Project(image, [path])
    try:
        project.up()
        health = project.ask("kuzco-main", 14000, "GET", "/healthz").json
        assert (health["ok"], health["nat"]["outcome"]) == (True, "rule")
    finally:
        project.close()


def test_the_runtimes_run_command_serves_beside_an_engine(follow: Callable[..., Named], image: str) -> None:
    """`host.docker.internal` is a name of the engine's machine, or given: here a container that stands in for vLLM."""
    engine = Box(image, "-e", "PROXY_PORT=8000", "-e", "PUBLIC_MODEL=org/model")
    try:
        engine.wait_health()
        address = next(iter(engine.inspect()["NetworkSettings"]["Networks"].values()))["IPAddress"]
        box = follow(RUN_RUNTIME, "--add-host", f"host.docker.internal:{address}").wait_health()
        assert box.ask("GET", "/health", port=9000).json == {"status": "healthy", "service": "runtime"}
        ends = time.monotonic() + 30
        while (page := box.ask("GET", "/metrics", port=9000)).status != 200 and time.monotonic() < ends:
            time.sleep(0.5)
        assert page.headers["content-type"].startswith("text/plain")
        assert json.loads(box.ask("GET", "/v1/lora_adapters", port=9000).text) is not None
        refused = box.ask(
            "POST",
            "/v1/load_lora_adapter",
            {"lora_name": "a", "source": "hf://ns/a", "output_dir": "/models/a"},
            port=9000,
        )
        assert (refused.status, list(refused.json)) == (403, ["detail"])
        assert "LORA_ALLOWED_DIRS" in refused.text
    finally:
        engine.close()
