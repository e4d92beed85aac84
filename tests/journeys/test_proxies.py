"""The proxies of the environment: downloads go through them, jobs and the command line alike; requests to engines never do."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from appliance.reload import Reloader
from tests.downloads.engines import MIB, random_bytes, read_folder
from tests.fakes.engine_server import EngineServer
from tests.fakes.file_hubs import Hub
from tests.fakes.forward_proxy import ForwardProxy
from tests.journeys.running import Spawn, Start, until
from tests.journeys.test_backends import ask
from tests.journeys.test_download import download

HOSTS = dict.fromkeys(("hub.test", "cdn.test"), "127.0.0.1")
DATA = random_bytes(2 * MIB)
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class ElsewhereHub(Hub):
    """A Hugging Face endpoint whose hosts nobody but the proxy knows."""

    async def __aenter__(self):
        await super().__aenter__()
        self.url, self.cdn = (
            self.url.replace("127.0.0.1", "hub.test"),
            self.cdn.replace("127.0.0.1", "cdn.test"),
        )
        return self


async def test_engines_are_never_asked_through_a_proxy(spawn: Spawn) -> None:
    async with EngineServer("vllm") as engine, ForwardProxy(HOSTS) as proxy:
        running = await asyncio.to_thread(
            spawn, BACKENDS=f"v={engine.url}", PASSTHROUGH="1", **dict.fromkeys(VARIABLES, proxy.url)
        )
        status, _, value = await ask(running)
        assert (status, value["object"]) == (200, "chat.completion")
        assert (await ask(running, path="/v1/models", method="GET"))[0] == 200
        await ask(running, {"prompt": "hello"}, path="/tokenize")  # by the client of what is only passed on
        assert proxy.asked == []


async def test_the_command_line_goes_through_it_and_names_its_faults(tmp_path: Path) -> None:
    async with ElsewhereHub({"model.gguf": DATA}) as hub, ForwardProxy(HOSTS) as proxy:
        proxy.password = "me:rightsecret"
        for value, code, said in [
            (f"http://me:rightsecret@127.0.0.1:{proxy.port}", 0, "1 file, 2.1 MB"),
            (f"http://me:wrongsecret@127.0.0.1:{proxy.port}", 1, "requires other credentials"),
            ("socks5://me:wrongsecret@p.test:1", 78, "HTTP_PROXY names a socks5:// proxy"),
            ("http://me:wrongsecret@", 78, "HTTP_PROXY is not the URL of a proxy"),
        ]:
            async with download(
                "ns/repo", "-o", tmp_path / str(code), HF_ENDPOINT=hub.url, HTTP_PROXY=value
            ) as run:
                ended, out, err = await run.end()
            assert (ended, said in out + err) == (code, True), (ended, out, err)
            assert "secret" not in out + err
    assert read_folder(tmp_path / "0") == {"model.gguf": DATA}
    assert proxy.sent["cdn.test"] > len(DATA)


@pytest.mark.parametrize("source", ["ns/repo", "s3://bucket/x", "ms://ns/repo", "https://host.test/x"])
async def test_a_silent_proxy_does_not_hold_up_the_end(tmp_path: Path, source: str) -> None:
    met = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await reader.read()  # what it asks
        await reader.read()  # until it leaves
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with download(
        source, "-o", tmp_path / "out", HTTPS_PROXY=url, ACCESS_KEY="a", SECRET_KEY="b"
    ) as run:
        run.patience_s = 20  # the longest that the server is waited for is three times as long
        await asyncio.wait_for(met.wait(), 20)
        run.process.send_signal(signal.SIGINT)
        assert (await run.end())[0] == 130
    server.close()


async def test_a_job_goes_through_it_and_a_reload_takes_another_one(start: Start, tmp_path: Path) -> None:
    variables = tmp_path / "variables"
    async with ElsewhereHub({"model.gguf": DATA}) as hub, ForwardProxy(HOSTS) as proxy:
        proxy.password = "me:rightsecret"
        variables.write_text(
            f"HF_ENDPOINT={hub.url}\nHTTP_PROXY=http://me:wrongsecret@127.0.0.1:{proxy.port}\n"
        )
        running = await start(APPLIANCE_ENV_FILE=str(variables))
        body = {"source": "ns/repo", "output_dir": "repo", "async_download": True}

        async def outcome() -> dict[str, object]:
            _, _, value = await ask(running, body, path="/v1/download_model")
            jobs = running.appliance.jobs
            assert await until(lambda: not jobs.all()[0].is_active)
            return (await ask(running, path=f"/v1/jobs/{jobs.all()[0].id}", method="GET"))[2]

        job = await outcome()
        assert (job["state"], "requires other credentials" in str(job["error"])) == ("failed", True)
        variables.write_text(variables.read_text().replace("wrongsecret", "rightsecret"))
        result = await Reloader(running.appliance).reload({}, False)
        assert (result.applied, [change.new for change in result.changes]) == (
            True,
            ["other proxies for downloads"],
        )
        job = await outcome()
        assert job["state"] == "completed", job
    kept = (tmp_path / "state" / "jobs.json").read_text()
    assert "secret@" not in kept + str(job) + str(result)
    assert proxy.sent["cdn.test"] > len(DATA)
    assert os.listdir(tmp_path / "state" / "models" / "repo")
