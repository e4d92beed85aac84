"""Under an arbitrary user id and without any capability it does the same, other than what it says it cannot do."""

from collections.abc import Callable

from tests.image.box import BARE, Box, answer_of, chat, docker


def test_it_serves_as_that_user(powerless: Box) -> None:
    for row in powerless.processes():
        assert row["Uid"].split() == ["12345"] * 4
        assert row["CapEff"] == row["CapPrm"] == "0000000000000000"
    assert "Hello image" in answer_of(powerless.ask("POST", "/v1/chat/completions", chat("Hello image")))


def test_a_second_listener_takes_the_place_of_the_redirect(powerless: Box) -> None:
    assert powerless.ask("GET", "/healthz").json["nat"]["outcome"] == "listener"
    assert "Hello image" in answer_of(
        powerless.ask("POST", "/v1/chat/completions", chat("Hello image"), port=14444)
    )
    assert powerless.ask_from_outside("GET", "/healthz", port=14444).returncode != 0


def test_a_state_folder_it_may_not_write_is_said(powerless: Box) -> None:
    step = next(
        step for step in powerless.ask("GET", "/healthz").json["steps"] if step["name"] == "machine-id"
    )
    assert step["outcome"] == "skipped"
    assert "STATE_DIR" in step["remedy"]


def test_the_machine_id_lasts_where_the_user_may_write(
    start: Callable[..., Box], volume: str, image: str
) -> None:
    mount = f"{volume}:/var/lib/appliance"
    # something must stand in it: into an empty volume the engine copies the image's folder, with its owner, at every start
    docker(
        "run",
        "--rm",
        "-v",
        mount,
        "--entrypoint",
        "sh",
        image,
        "-c",
        "touch /var/lib/appliance/kept && chown -R 12345:12345 /var/lib/appliance",
    )
    arguments = [*BARE, "--user", "12345:12345", "-v", mount]
    first = start(*arguments).wait_health()
    machine_id = first.machine_id()
    first.close()
    assert start(*arguments).wait_health().machine_id() == machine_id


def test_any_user_of_group_0_may_write_the_state_folder(start: Callable[..., Box]) -> None:
    box = start(*BARE, "--user", "987654:0").wait_health()
    step = next(step for step in box.ask("GET", "/healthz").json["steps"] if step["name"] == "machine-id")
    assert step["outcome"] == "done"


def test_it_ends_with_0_on_sigterm(start: Callable[..., Box]) -> None:
    box = start(*BARE, "--user", "12345:12345").wait_health()
    docker("stop", "-t", "40", box.name)
    assert box.exit_code == 0, box.logs()
