"""`appliance download` as a process: killed, stopped, twice at once, on a full disk, on a terminal."""

import asyncio
import json
import os
import pty
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from appliance.downloads.part import BLOCK_BYTES
from tests.downloads.engines import MIB, leftovers, random_bytes, read_folder
from tests.fakes.file_hubs import Cut, FileServer, Hub, Status

PATIENCE_S = 60
WORKERS = 4


class Download:
    """One run of the command."""

    patience_s = PATIENCE_S

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []

    async def until(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read its JSON lines up to one that is as wanted."""
        assert self.process.stdout is not None
        while True:
            line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)
            assert line, self.told[-3:]
            self.told.append(json.loads(line))
            if is_it(self.told[-1]):
                return self.told[-1]

    async def end(self) -> tuple[int, str, str]:
        """Give its exit code and what else it said."""
        out, err = await asyncio.wait_for(self.process.communicate(), self.patience_s)
        return self.process.returncode or 0, out.decode(), err.decode()

    async def result(self) -> dict[str, Any]:
        code, out, err = await self.end()
        assert code == 0, err + out
        return json.loads(out.splitlines()[-1])

    async def result_with_story(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        code, out, err = await self.end()
        assert code == 0, err + out
        *story, result = [*self.told, *(json.loads(line) for line in out.splitlines())]
        return result, story


@asynccontextmanager
async def download(
    *arguments: str | Path, before: tuple[str, ...] = (), **environ: str
) -> AsyncIterator[Download]:
    """Start the command; it is ended in any case."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DOWNLOAD_"))}
    process = await asyncio.create_subprocess_exec(
        *before,
        sys.executable,
        "-m",
        "appliance",
        "download",
        *map(str, arguments),
        env=clean | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        yield Download(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_killed_download_is_resumed(tmp_path: Path) -> None:
    out, size = tmp_path / "out", 64 * MIB
    async with Hub({"model.gguf": random_bytes(size), "config.json": b"{}"}) as hub:
        hub.drip_s = 0.03
        sent_at_kill = []
        for share in (0.25, 0.6):
            async with download(
                "ns/repo", "-o", out, "-w", str(WORKERS), "--json", HF_ENDPOINT=hub.url
            ) as first:
                await first.until(lambda told, share=share: told.get("done_bytes", 0) > share * size)
                first.process.send_signal(signal.SIGKILL)
                await first.process.wait()
            sent_at_kill.append(hub.sent["model.gguf"])
            assert "model.gguf" not in read_folder(out)
        async with download(
            "-s", "hf://ns/repo", "--output-dir", out, "-w", str(WORKERS), "--json", HF_ENDPOINT=hub.url
        ) as second:
            done = await second.result()
    assert read_folder(out) == {"model.gguf": hub.files["model.gguf"], "config.json": b"{}"}
    assert leftovers(out) == []
    twice = hub.sent["model.gguf"] - size
    print(
        f"fetched twice after two kills: {twice} bytes of {size}; "
        f"the last run fetched {done['fetched_bytes']}"
    )
    assert (
        0 <= twice <= 2 * WORKERS * (BLOCK_BYTES + MIB)
    )  # for each kill and worker a block, and what was on the way
    assert done["fetched_bytes"] < size * 0.45


def is_waiting(told: dict[str, Any]) -> bool:
    return bool(told["status"] == "waiting")


async def test_two_processes_for_one_folder_fetch_once(tmp_path: Path) -> None:
    out, size = tmp_path / "out", 24 * MIB
    async with Hub({"model.gguf": random_bytes(size)}) as hub:
        hub.flowing.clear()  # nobody is ready before the other one is there
        arguments = ("ns/repo", "-o", out, "-w", "2", "--json")
        async with (
            download(*arguments, HF_ENDPOINT=hub.url) as first,
            download(*arguments, HF_ENDPOINT=hub.url) as second,
        ):
            waits = {asyncio.create_task(one.until(is_waiting)) for one in (first, second)}
            _, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            await asyncio.wait(others)
            hub.flowing.set()
            results = await asyncio.gather(first.result_with_story(), second.result_with_story())
    assert sorted(result["fetched_bytes"] for result, _ in results) == [0, size]
    assert hub.sent["model.gguf"] == size
    waiter = min(results, key=lambda pair: pair[0]["fetched_bytes"])[1]
    holder = max(((first, results[0]), (second, results[1])), key=lambda pair: pair[1][0]["fetched_bytes"])[0]
    notes = [told["note"] for told in waiter if told["status"] == "waiting"]
    assert notes[0] == f"process {holder.process.pid} downloads into the same folder"


async def test_a_lock_of_a_dead_process_blocks_nobody(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("1\n")  # young, of a living process: system E would wait for it
    async with Hub({"model.gguf": random_bytes(16 * MIB)}) as hub:
        hub.drip_s = 0.2
        async with download("ns/repo", "-o", out, "--json", HF_ENDPOINT=hub.url) as first:
            await first.until(lambda told: told["status"] == "fetching" and told["fetched_bytes"] > 0)
            hub.flowing.clear()  # it must not be ready before the second one waits for it
            assert (out / ".lock").read_text() == f"{first.process.pid}\n"
            assert (out / ".lock").stat().st_mode & 0o777 == 0o600
            async with download("ns/repo", "-o", out, "--json", HF_ENDPOINT=hub.url) as second:
                await second.until(is_waiting)
                first.process.kill()
                await first.process.wait()
                hub.drip_s = 0
                hub.flowing.set()
                assert (await second.result())["status"] == "completed"
    assert read_folder(out) == {"model.gguf": hub.files["model.gguf"]}
    assert (out / ".lock").read_text() == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_stopping_leaves_parts_and_says_so(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out, size = tmp_path / "out", 16 * MIB
    async with Hub({"model.gguf": random_bytes(size)}) as hub:
        hub.drip_s = 0.08
        async with download("ns/repo", "-o", out, "--json", HF_ENDPOINT=hub.url) as first:
            await first.until(lambda told: told.get("done_bytes", 0) > size // 2)
            first.process.send_signal(number)
            ended, _, err = await first.end()
        assert ended == code
        assert (
            err
            == f"stopped; what was downloaded is kept in {out}, and the same command continues from there\n"
        )
        hub.drip_s = 0
        async with download("ns/repo", "-o", out, "--json", HF_ENDPOINT=hub.url) as second:
            assert (await second.result())["fetched_bytes"] <= size // 2
    assert read_folder(out) == {"model.gguf": hub.files["model.gguf"]}


def namespace_or_skip() -> None:
    probe = os.system("unshare -m true 2>/dev/null") if os.geteuid() == 0 else 1
    if probe:
        pytest.skip("needs a mount namespace (root)")


def small_disk(folder: Path, megabytes: int) -> tuple[str, ...]:
    """Give the command that runs another with a small disk at `folder`, seen by that one only."""
    return (
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs -o size={megabytes}m none "{folder}" && "$@"; code=$?; '
        f'ls -A "{folder}/out"; exit $code',
        "sh",
    )


async def test_a_disk_without_room_is_seen_before_anything_is_fetched(tmp_path: Path) -> None:
    namespace_or_skip()
    async with (
        Hub({"model.gguf": random_bytes(24 * MIB)}) as hub,
        download(
            "ns/repo", "-o", tmp_path / "out", before=small_disk(tmp_path, 16), HF_ENDPOINT=hub.url
        ) as run,
    ):
        code, _, err = await run.end()
    assert code == 1
    assert "Not enough disk space" in err
    assert f"{24 * MIB:,} bytes are needed" in err
    assert hub.asked == []


async def test_a_disk_that_becomes_full_is_told_and_what_came_is_kept(tmp_path: Path) -> None:
    namespace_or_skip()
    ca, server_side = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server_side)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "disk").mkdir()
    async with (
        FileServer(
            {"model.gguf": random_bytes(24 * MIB)}, tells_length=False, ssl_context=server_side
        ) as server,
        download(
            f"{server.url}/model.gguf",
            "-o",
            tmp_path / "disk" / "out",
            before=small_disk(tmp_path / "disk", 16),
            SSL_CERT_FILE=str(tmp_path / "ca.pem"),
        ) as run,
    ):  # it learns the size only by running into the wall
        code, out, err = await run.end()
    assert code == 1
    assert "No space left on device. What was fetched is kept. Free some space, and run it again." in err
    assert "model.gguf" not in out.splitlines()
    assert ".download" in out.splitlines()


async def test_a_secret_argument_is_not_in_ps_or_output(
    tmp_path: Path,
) -> None:
    config = json.dumps({"hf_token": "hf_a_secret_of_ours"})
    async with Hub({"model.gguf": random_bytes(8 * MIB)}) as hub:
        hub.token, hub.drip_s = "hf_a_secret_of_ours", 0.02
        async with download(
            "ns/repo", "-o", tmp_path / "out", "-c", config, "--json", HF_ENDPOINT=hub.url
        ) as run:
            await run.until(lambda told: told["status"] == "fetching")
            line = Path(f"/proc/{run.process.pid}/cmdline").read_bytes()
            assert b"hf_a_secret" not in line
            assert b"ns/repo\0-o\0" in line
            code, out, err = await run.end()
        hub.faults["model.gguf"] = [Status(403)]
        (tmp_path / "token.json").write_text(config)
        async with download(
            "ns/repo", "-o", tmp_path / "out2", "-c", f"@{tmp_path / 'token.json'}", HF_ENDPOINT=hub.url
        ) as refused:
            failed, out2, err2 = await refused.end()
    assert (code, failed) == (0, 1)
    assert "refuses access (403)" in err2
    written = (tmp_path / "out" / ".download.json").read_text()
    assert "hf_a_secret" not in out + err + out2 + err2 + written


async def test_verify_and_repair_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with Hub({"model.gguf": random_bytes(2 * MIB), "config.json": b"{}"}) as hub:
        hub.faults["model.gguf"] = [Cut(MIB)]
        async with download("ns/repo", "-o", out, "--verify", HF_ENDPOINT=hub.url) as run:
            code, text, err = await run.end()
        assert (code, text.splitlines()[-1]) == (0, f"{out} is complete and unchanged")
        assert text.startswith("2 files, 2.1 MB in ")
        assert "fetching: " in err
        (out / "config.json").write_bytes(b"[]")
        async with download("--verify", "-o", out) as run:
            code, text, _ = await run.end()
        assert (code, text.split()[:2]) == (1, ["checksum", "config.json:"])
        async with download("--repair", "--verify", "-o", out, "--json", HF_ENDPOINT=hub.url) as run:
            code, text, _ = await run.end()
    assert code == 0
    assert json.loads(text.splitlines()[-1]) == {"status": "verified", "flaws": []}
    assert (out / "config.json").read_bytes() == b"{}"


async def test_what_is_asked_wrongly_is_said_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "file").write_text("")
    for arguments, environ, code, text in [
        ((), {}, 2, "Give a SOURCE"),
        (("gs://x/y",), {}, 2, "Unknown source gs://"),
        (("ns/repo", "-c", "{"), {}, 2, "is not JSON"),
        (("ns/repo", "-c", "[1]"), {}, 2, "JSON object"),
        (("ns/repo", "-c", "@/none"), {}, 2, "cannot be read"),
        (("ns/repo", "-w", "many"), {}, 2, "invalid int value"),
        (("ns/repo",), {"DOWNLOAD_MAX_WORKERS": "0"}, 78, "DOWNLOAD_MAX_WORKERS=0"),
        (("pvc://" + str(tmp_path / "source"), "-o", str(tmp_path / "file")), {}, 1, "/file is not a folder"),
        (
            ("pvc://" + str(tmp_path / "source"), "-o", str(tmp_path / "file" / "below")),
            {},
            1,
            "is below something that is not a folder",
        ),
        (("s3://b/x",), {}, 2, "s3://bucket/prefix"),
        (("--verify", "-o", str(tmp_path)), {}, 1, "no download into it was recorded"),
        (("pvc:///none",), {}, 1, "/none is not a folder"),
    ]:
        async with download(*arguments, **environ) as run:
            ended, _, err = await run.end()
        assert (ended, text in err) == (code, True), (arguments, ended, err)


async def test_a_terminal_sees_a_bar(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    async with Hub({"model.gguf": random_bytes(6 * MIB)}) as hub:
        hub.drip_s = 0.02
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance",
            "download",
            "ns/repo",
            "-o",
            tmp_path / "out",
            env=os.environ | {"HF_ENDPOINT": hub.url, "COLUMNS": "120", "TERM": "xterm"},
            stderr=slave,
            stdout=slave,
        )
        os.close(slave)
        shown = bytearray()
        asyncio.get_running_loop().add_reader(master, lambda: shown.extend(_read(master)))
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        await asyncio.sleep(0)
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
    text = shown.decode()
    assert "0/1 model.gguf" in text
    assert "6.3/6.3 MB" in text
    assert "MB/s" in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
