"""The model manager with a real llama-server and tiny models; downloads; the status port."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc.aio

from appliance.control.v1 import control_pb2 as pb
from tests.golden.areas_control import Calls
from tests.golden.areas_demo import CHAT, say
from tests.golden.instance import Instance, free_port, serving, until
from tests.tools import tiny_models

TOOL = Path(__file__).parents[1] / "tools" / "llama-server"
READY = 60.0


async def models() -> dict[str, Any]:
    """A table of two models that work, one that is broken and one whose file is missing; one place."""
    binary, folder = await asyncio.to_thread(_llama_server), await asyncio.to_thread(_tiny_models)
    params = {"n_ctx": 8192, "parallel_override": 2, "n_gpu_layers": 0}
    table = {
        "system": {
            "llama_server_path": binary,
            "base_models_path": str(folder),
            "cpu_threads": 1,
            "keep_warm_models": 0,
            "flash_attention": "off",
            "max_concurrent_models": 2,
            "model_load_max_retries": 0,
        },
        "models": {
            "chat": {"model_path": "tiny-chat.gguf", "params": params},
            "embed": {
                "model_path": "tiny-embed.gguf",
                "params": {"n_ctx": 512, "embedding": True, "n_gpu_layers": 0},
            },
            "broken": {"model_path": "{folder}/files/broken.gguf", "params": params},
            "missing": {"model_path": "{folder}/files/missing.gguf", "params": params},
        },
    }
    first = 20_000 + free_port() % 10_000
    async with serving(
        known={
            str(folder): "<models>",
            binary: "<llama-server>",
            str(Path(binary).resolve()): "<llama-server>",
        },
        files={"table.json": table, "files/broken.gguf": "no model"},
        CONFIG_PATH="{folder}/table.json",
        extra_ports=("STATUS_PORT", "SIDECAR_PORT"),
        MODEL_FIRST_PORT=str(first),
        MODEL_LAST_PORT=str(first + 9),
    ) as instance:
        await _before_anything(instance)
        await _one_model(instance)
        await _answers(instance)
        await _failures(instance)
        await _ollama(instance)
        await _readings(instance)
        await instance.note_metrics()
        await _control(instance)
        await instance.note_metrics("metrics of the sidecar", port=instance.ports["SIDECAR_PORT"])
        await instance.note("eject: force", "POST", "/v1/models/eject", {"model": "chat", "force": True})
        return instance.record


def _llama_server() -> str:
    done = subprocess.run([str(TOOL)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert not done.returncode, f"no llama-server could be had:\n{done.stderr}"
    return done.stdout.strip()


def _tiny_models() -> Path:
    return tiny_models.ensure(tiny_models.cached_folder())


async def _before_anything(instance: Instance) -> None:
    for path in (
        "/v1/models/status",
        "/v1/models/status/chat",
        "/v1/models/status/nobody",
        "/v1/models/chat/status",
        "/v1/models/nobody/status",
        "/v1/models/failed",
        "/v1/queue/stats",
        "/v1/health/models",
        "/v1/telemetry/summary",
        "/vram/models/chat",
        "/vram/models/nobody",
        "/v1/models",
        "/v1/models/chat",
        "/health",
        "/api/tags",
        "/api/ps",
        "/v1/models/eject",
        "/v1/models/chat/load",
        "/v1/models/nobody/load",
    ):
        await instance.note(f"before: {path}", "GET", path)
    await instance.note("feed: status", "GET", "/v1/models/status/stream", events=1)
    await instance.note("feed: metrics", "GET", "/metrics/stream", events=1)
    status = instance.ports["STATUS_PORT"]
    for path in ("/health", "/status", "/status/chat", "/status/nobody", "/nothing"):
        await instance.note(f"status port: {path}", "GET", path, port=status)
    await instance.note("status port: /status/stream", "GET", "/status/stream", port=status, events=1)
    await instance.note("status port: POST", "POST", "/status", {}, port=status)


async def _one_model(instance: Instance) -> None:
    for name, path, body in (
        ("load: nobody", "/v1/models/nobody/load", {}),
        ("load: a wrong type", "/v1/models/chat/load", {"stream": "yes"}),
        ("load: bad json", "/v1/models/chat/load", "{"),
        ("load: keep_alive of a wrong kind", "/v1/models/chat/load", {"keep_alive": "soon"}),
        ("eject: not loaded", "/v1/models/eject", {"model": "chat"}),
        ("eject: nobody", "/v1/models/eject", {"model": "nobody"}),
        ("eject: nothing", "/v1/models/eject", {}),
        ("eject: a wrong type", "/v1/models/eject", {"model": 5}),
        ("reset: nothing to forget", "/v1/models/chat/reset", None),
        ("reset: nobody", "/v1/models/nobody/reset", None),
        ("pin", "/v1/models/chat/pin", None),
        ("pin: nobody", "/v1/models/nobody/pin", None),
        ("unpin", "/v1/models/chat/unpin", None),
        ("load", "/v1/models/chat/load", {"keep_alive": "10m"}),
        ("load: again", "/v1/models/chat/load", {"keep_alive": -1}),
        ("eject", "/v1/models/eject", {"model": "chat"}),
    ):
        await instance.note(name, "POST", path, body)
    heard = await instance.ask("POST", "/v1/models/chat/load", {"stream": True})
    found = instance.normaliser.answer(heard)
    # How many steps of a load are seen depends on how quick it is: the first and the last one.
    events = [event for event in heard.body.decode().split("\n\n") if event]
    instance.put(
        "load: stream",
        {
            **found,
            "body": {
                "events": sorted({event.split("\n")[0] for event in events}),
                "last": [instance.normaliser.line(line) for line in events[-1].split("\n")],
            },
        },
    )


async def _answers(instance: Instance) -> None:
    for name, path, body in (
        ("chat", CHAT, say("Hello", model="chat")),
        ("chat, stream", CHAT, say("Hello", model="chat", stream=True)),
        ("chat: nobody", CHAT, say("Hello", model="nobody")),
        ("chat: no model named", CHAT, say("Hello")),
        ("embeddings", "/v1/embeddings", {"model": "embed", "input": "Hello"}),
        ("embeddings of a chat model", "/v1/embeddings", {"model": "chat", "input": "Hello"}),
        ("responses", "/v1/responses", {"model": "chat", "input": "Hello"}),
        ("passage", "/tokenize", {"model": "chat", "content": "Hello"}),
        ("too long", CHAT, say("word " * 9000, model="chat")),
    ):
        heard = await instance.ask("POST", path, body)
        found = instance.normaliser.answer(heard)
        if body.get("stream"):
            lines = [line for line in found["body"] if line]
            found["body"] = {"first": lines[0], "last": lines[-2:]}
        instance.put(
            name,
            {
                "request": {"line": f"POST {path}", "body": body if len(str(body)) < 1000 else "long"},
                "answer": _less_engine(found),
            },
        )


def _less_engine(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a llama-server says of itself, which another one says in another way."""
    body = found["body"]
    if isinstance(body, dict) and "choices" in body:
        found["body"] = {
            "keys": sorted({*body} - {"timings", "system_fingerprint", "__verbose"}),
            "model": body["model"],
            "object": body["object"],
            "choices": [
                {"finish_reason": choice["finish_reason"], "content": choice["message"]["content"]}
                for choice in body["choices"]
            ],
        }
    elif isinstance(body, dict) and "last" in body:
        body["first"] = "<event>" if body["first"].startswith("data: {") else body["first"]
        body["last"] = ["<event>" if line.startswith("data: {") else line for line in body["last"]]
    elif isinstance(body, dict) and "data" in body:
        found["body"] = {
            "keys": sorted(body),
            "model": body["model"],
            "data": [sorted(row) for row in body["data"]],
        }
    return found


async def _failures(instance: Instance) -> None:
    for alias in ("broken", "missing"):
        await instance.note(f"chat: {alias}", "POST", CHAT, say("Hello", model=alias))
        await instance.note(f"chat: {alias}, Ollama", "POST", "/api/chat", say("Hello", model=alias))
        await instance.note(f"load: {alias}", "POST", f"/v1/models/{alias}/load", {})
        await instance.note(f"status: {alias}", "GET", f"/v1/models/status/{alias}")
        await instance.note(f"word: {alias}", "GET", f"/v1/models/{alias}/status")
    await instance.note("failed", "GET", "/v1/models/failed")
    heard = await instance.ask("POST", "/v1/models/broken/load", {"stream": True})
    instance.put(
        "load: broken, stream",
        {**instance.normaliser.answer(heard), "body": instance.normaliser.answer(heard)["body"][-4:]},
    )
    await instance.note("reset: broken", "POST", "/v1/models/broken/reset")


async def _ollama(instance: Instance) -> None:
    await instance.note("show: nobody", "POST", "/api/show", {"model": "nobody"})
    heard = await instance.ask("POST", "/api/show", {"model": "chat"})
    shown = instance.normaliser.answer(heard)
    shown["body"] = {
        **shown["body"],
        "model_info": sorted(shown["body"]["model_info"]),
        "template": "<template>",
    }
    instance.put("show", shown)
    await instance.note("load by generate", "POST", "/api/generate", {"model": "chat", "keep_alive": "5m"})
    await instance.note(
        "unload by chat", "POST", "/api/chat", {"model": "chat", "messages": [], "keep_alive": 0}
    )
    await until(lambda: _is_off(instance, "chat"), what="it is unloaded")
    await instance.note("delete: of the table", "DELETE", "/api/delete", {"model": "chat"})
    await instance.note("delete: nobody", "DELETE", "/api/delete", {"model": "nobody"})
    await instance.note("pull: of the table", "POST", "/api/pull", {"model": "chat", "stream": False})
    await instance.ask("POST", "/v1/models/chat/load", {"keep_alive": "10m"})


async def _is_off(instance: Instance, alias: str) -> bool:
    return bool((await instance.json("GET", f"/v1/models/status/{alias}"))["status"] == "off")


async def _readings(instance: Instance) -> None:
    await until(lambda: _is_idle(instance), what="nobody is served")
    for path in (
        "/v1/models/status",
        "/v1/models/status/chat",
        "/v1/models/chat/status",
        "/v1/queue/stats",
        "/vram",
        "/vram/summary",
        "/vram/models/chat",
        "/vram/models/embed",
        "/api/tags",
        "/api/ps",
        "/v1/models",
        "/health",
        "/api/v1/loadbalancer/loads",
        "/metrics/report",
    ):
        await instance.note(f"after: {path}", "GET", path)
    for path in ("/v1/telemetry/summary", "/v1/models/status/file", "/v1/health/models"):
        instance.put(f"after: {path}", _shape(await instance.json("GET", path)))
    instance.put(
        "after: /healthz, backends",
        instance.normaliser.value((await instance.json("GET", "/healthz"))["backends"]),
    )
    await instance.note("after: feed of metrics", "GET", "/metrics/stream", events=1)


async def _control(instance: Instance) -> None:
    """The same over gRPC, and at the command line."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{instance.control_port}") as channel:
        calls = Calls(instance, channel)
        for name, method, request in (
            ("ListModels", "ListModels", pb.ListModelsRequest()),
            ("GetQueue", "GetQueue", pb.GetQueueRequest()),
            ("GetQueue: one", "GetQueue", pb.GetQueueRequest(alias="chat")),
            ("GetQueue: nobody", "GetQueue", pb.GetQueueRequest(alias="nobody")),
            ("GetVram", "GetVram", pb.GetVramRequest()),
            ("PinModel", "PinModel", pb.PinModelRequest(alias="chat")),
            ("PinModel: unpin", "PinModel", pb.PinModelRequest(alias="chat", pinned=False)),
            ("PinModel: nobody", "PinModel", pb.PinModelRequest(alias="nobody")),
            ("EjectModel", "EjectModel", pb.EjectModelRequest(alias="chat")),
            ("EjectModel: again", "EjectModel", pb.EjectModelRequest(alias="chat")),
            ("EjectModel: nobody", "EjectModel", pb.EjectModelRequest(alias="nobody")),
            ("ResetModel", "ResetModel", pb.ResetModelRequest(alias="missing")),
            ("ResetModel: nobody", "ResetModel", pb.ResetModelRequest(alias="nobody")),
            ("LoadModel: broken", "LoadModel", pb.LoadModelRequest(alias="broken")),
            ("LoadModel: nobody", "LoadModel", pb.LoadModelRequest(alias="nobody")),
        ):
            await calls.note(
                f"gRPC {name}",
                method,
                request,
                pick=(lambda values: "some" if values else "none") if method == "LoadModel" else None,
            )
        await calls.note(
            "gRPC LoadModel", "LoadModel", pb.LoadModelRequest(alias="chat"), pick=lambda values: values[-1:]
        )
        await calls.note(
            "gRPC WatchModels",
            "WatchModels",
            pb.WatchModelsRequest(),
            take=1,
            pick=lambda values: [sorted(value) for value in values],
        )
        await calls.note(
            "gRPC Chat: broken",
            "Chat",
            pb.ChatRequest(model="broken", messages=[pb.ChatMessage(role="user", content="x")]),
        )
    for arguments in (
        ("models", "--json"),
        ("models", "show", "chat", "--json"),
        ("models", "queue", "--json"),
        ("models", "vram", "--json"),
    ):
        code, text, _ = await instance.run(*arguments)
        instance.put(
            f"command line: {' '.join(arguments)}",
            {"exit": code, "stdout": _shape(json.loads(text)) if text.startswith(("{", "[")) else text},
        )
    code, text, _ = await instance.run(
        "models", "check", "--json", CONFIG_PATH=str(instance.folder / "table.json")
    )
    instance.put("command line: models check --json", {"exit": code, "stdout": _shape(json.loads(text))})


async def _is_idle(instance: Instance) -> bool:
    return not any(
        row["current_processing"] or row["queue_length"]
        for row in (await instance.json("GET", "/v1/queue/stats"))["per_model"].values()
    )


def _shape(value: Any) -> Any:
    """Keys only: what stands there depends on when it was written."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape(one) for one in value[:1]]
    return "<value>"


# ---- downloads


async def downloads() -> dict[str, Any]:
    """Downloads from a folder of this machine, and the jobs behind them."""
    async with serving(
        DOWNLOAD_ALLOWED_DIRS="{folder}/files,{folder}/out", extra_ports=("SIDECAR_PORT",)
    ) as instance:
        source, out, side = (
            instance.folder / "files" / "source",
            instance.folder / "out",
            instance.ports["SIDECAR_PORT"],
        )
        source.mkdir()
        (source / "a.gguf").write_bytes(b"a" * 5000)
        (source / "b.txt").write_bytes(b"b" * 70)
        await instance.note("jobs: none", "GET", "/v1/jobs")
        await instance.note(
            "download",
            "POST",
            "/v1/download_model",
            {"source": f"file://{source}", "output_dir": str(out / "one"), "max_workers": 2},
        )
        await instance.note(
            "download: again",
            "POST",
            "/v1/download_model",
            {"source": f"file://{source}", "output_dir": str(out / "one")},
        )
        await instance.note(
            "download: by a pattern",
            "POST",
            "/v1/download_model",
            {"source": f"pvc://{source}", "output_dir": str(out / "two"), "config": {"include": "*.txt"}},
        )
        await instance.note(
            "download: in the background",
            "POST",
            "/v1/download_model",
            {"source": f"file://{source}", "output_dir": str(out / "three"), "async_download": True},
        )
        await until(lambda: _has_ended(instance), what="the download in the background ends")
        newest = (await instance.json("GET", "/v1/jobs"))["jobs"][0]["id"]
        instance.normaliser.known[newest] = "<job>"
        await instance.note("job", "GET", f"/v1/jobs/{newest}")
        await instance.note("job: feed", "GET", f"/v1/jobs/{newest}/stream")
        await instance.note("job: cancelled too late", "DELETE", f"/v1/jobs/{newest}")
        instance.put(
            "jobs",
            instance.normaliser.value(
                [{**row, "id": "<job>"} for row in (await instance.json("GET", "/v1/jobs"))["jobs"]]
            ),
        )
        for verb, path in (
            ("GET", "/v1/jobs/nobody"),
            ("DELETE", "/v1/jobs/nobody"),
            ("GET", "/v1/jobs/nobody/stream"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/download_model"),
        ):
            await instance.note(f"{verb} {path}", verb, path, {} if verb == "POST" else None)
        for name, body in {
            "no source": {"output_dir": str(out / "x")},
            "no folder": {"source": f"file://{source}"},
            "a source of no kind": {"source": "ftp://x/y", "output_dir": str(out / "x")},
            "a source that is not there": {"source": f"file://{source}/none", "output_dir": str(out / "x")},
            "a source that is not allowed": {"source": "file:///etc", "output_dir": str(out / "x")},
            "a folder that is not allowed": {"source": f"file://{source}", "output_dir": "/etc/x"},
            "a host that is not allowed": {"source": "https://127.0.0.1/x", "output_dir": str(out / "x")},
            "workers of a wrong type": {
                "source": f"file://{source}",
                "output_dir": str(out / "x"),
                "max_workers": "many",
            },
            "an unknown key of config": {
                "source": f"file://{source}",
                "output_dir": str(out / "x"),
                "config": {"colour": "red"},
            },
            "bad json": "{",
            "config that is no object": {
                "source": f"file://{source}",
                "output_dir": str(out / "x"),
                "config": "[1]",
            },
        }.items():
            await instance.note(f"download: {name}", "POST", "/v1/download_model", body)
            await instance.note(f"sidecar, download: {name}", "POST", "/v1/download_model", body, port=side)
        await instance.note("verify: well", "POST", "/v1/downloads/verify", {"output_dir": str(out / "one")})
        (out / "one" / "a.gguf").write_bytes(b"x" * 5000)
        (out / "one" / "b.txt").unlink()
        await instance.note(
            "verify: flawed", "POST", "/v1/downloads/verify", {"output_dir": str(out / "one")}
        )
        await instance.note("repair", "POST", "/v1/downloads/repair", {"output_dir": str(out / "one")})
        await instance.note(
            "verify: repaired", "POST", "/v1/downloads/verify", {"output_dir": str(out / "one")}
        )
        for verb in ("verify", "repair"):
            await instance.note(f"{verb}: nothing", "POST", f"/v1/downloads/{verb}", {})
            await instance.note(
                f"{verb}: not downloaded to",
                "POST",
                f"/v1/downloads/{verb}",
                {"output_dir": str(out / "nobody")},
            )
            await instance.note(
                f"{verb}: not allowed", "POST", f"/v1/downloads/{verb}", {"output_dir": "/etc"}
            )
        await instance.note(
            "sidecar: download",
            "POST",
            "/v1/download_model",
            {"source": f"file://{source}", "output_dir": str(out / "four")},
            port=side,
        )
        await instance.note("sidecar: /ready", "GET", "/ready", port=side)
        await _jobs(instance, source, out)
        await instance.note_metrics()
        await _command_line(instance, source, out)
        return instance.record


async def _jobs(instance: Instance, source: Path, out: Path) -> None:
    """The same over gRPC."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{instance.control_port}") as channel:
        calls = Calls(instance, channel)

        def named(values: list[Any]) -> list[Any]:
            return [{**value["job"], "id": "<job>"} for value in values[-1:]]

        started = await calls.note(
            "gRPC StartDownload",
            "StartDownload",
            pb.StartDownloadRequest(source=f"file://{source}", output_dir=str(out / "five")),
            pick=lambda values: [sorted(value["job"]) for value in values],
        )
        job = started[0].job.id
        instance.normaliser.known[job] = "<job>"
        await calls.note("gRPC WatchJob", "WatchJob", pb.WatchJobRequest(id=job), pick=named)
        await calls.note("gRPC GetJob", "GetJob", pb.GetJobRequest(id=job), pick=named)
        await calls.note("gRPC CancelJob", "CancelJob", pb.CancelJobRequest(id=job), pick=named)
        await calls.note(
            "gRPC ListJobs",
            "ListJobs",
            pb.ListJobsRequest(),
            pick=lambda values: [[sorted(row) for row in value["jobs"]] for value in values],
        )


async def _has_ended(instance: Instance) -> bool:
    return not any(
        job["state"] in {"queued", "running"} for job in (await instance.json("GET", "/v1/jobs"))["jobs"]
    )


async def _command_line(instance: Instance, source: Path, out: Path) -> None:
    """The verb `download`: exit codes, and the objects that it prints."""
    code, text, _ = await instance.run("download", f"file://{source}", "-o", str(out / "cli"), "--json")
    instance.put(
        "command line: download --json",
        {"exit": code, "last": instance.normaliser.line(text.strip().splitlines()[-1])},
    )
    for name, arguments in {
        "verify": ("--verify", "-o", str(out / "cli"), "--json"),
        "no source": ("-o", str(out / "cli")),
        "a source that is not there": (f"file://{source}/none", "-o", str(out / "x")),
    }.items():
        code, text, _ = await instance.run("download", *arguments)
        instance.put(
            f"command line: {name}",
            {
                "exit": code,
                "stdout": [instance.normaliser.line(line) for line in text.strip().splitlines()[-1:]],
            },
        )
