"""nvidia-smi inside: one simulated identity a run, always marked; without a GPU what a machine without one says."""

from collections.abc import Callable

from tests.image.box import HARDENED, Box, docker


def test_simulated_gpu_has_one_identity_per_container(start: Callable[..., Box], volume: str) -> None:
    arguments = [*HARDENED, "-e", "GPU_MODE=simulated", "-v", f"{volume}:/var/lib/appliance"]
    box = start(*arguments).wait_health()
    listed = box.run("nvidia-smi", "-L").stdout
    assert " (simulated) (UUID: GPU-" in listed
    assert box.run("nvidia-smi", "-L").stdout == listed
    assert docker("exec", "--user", "10001", box.name, "nvidia-smi", "-L").stdout == listed
    box.close()
    other = start(*arguments).wait_health().run("nvidia-smi", "-L").stdout
    assert " (simulated) (UUID: GPU-" in other
    assert other != listed


def test_every_name_is_marked_and_no_setting_takes_the_mark_away(start: Callable[..., Box]) -> None:
    box = start(
        *HARDENED, "-e", "GPU_MODE=simulated", "-e", "GPU_SPOOF_NAME=NVIDIA H200", "-e", "GPU_SIM_COUNT=2"
    ).wait_health()
    names = box.run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").stdout.splitlines()
    assert names == ["NVIDIA H200 (simulated)"] * 2
    assert box.ask("GET", "/healthz").json["gpu"]["simulated"] is True
    assert "simulated" in box.logs()


def test_without_a_gpu_it_answers_as_the_real_tool_does(hardened: Box, powerless: Box) -> None:
    for box in (hardened, powerless):
        done = box.run("nvidia-smi", is_checked=False)
        assert done.returncode == 9
        assert done.stdout.startswith(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
        )
        assert box.ask("GET", "/healthz").json["gpu"].get("gpus") == []


def test_a_real_tool_in_usr_bin_gets_everything(start: Callable[..., Box], volume: str, image: str) -> None:
    """The NVIDIA runtime mounts its tool there; a script that records its arguments stands in."""
    script = '#!/bin/sh\necho real "$@"\nexit 6\n'
    docker(
        "run",
        "--rm",
        "-i",
        "-v",
        f"{volume}:/v",
        "--entrypoint",
        "sh",
        image,
        "-c",
        "cat >/v/nvidia-smi && chmod 755 /v/nvidia-smi",
        text=script,
    )
    box = start(*HARDENED, "-v", f"{volume}:/usr/local/nvidia/bin:ro").wait_health()
    done = box.run("nvidia-smi", "--query-gpu=name", "--format=csv", "a b", is_checked=False)
    assert (done.returncode, done.stdout) == (6, "real --query-gpu=name --format=csv a b\n")


def test_gpu_mode_real_without_a_gpu_stops_it_with_the_remedy(image: str) -> None:
    done = docker("run", "--rm", *HARDENED, "-e", "GPU_MODE=real", image, is_checked=False)
    assert done.returncode == 1
    assert "--gpus all" in done.stderr
