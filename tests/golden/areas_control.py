"""The control API over gRPC, the settings, and the command line."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.fakes.lora_engines import LoraEngine
from tests.golden.areas_demo import CHAT, say
from tests.golden.instance import CALM, Instance, log_lines, run, serving, until
from tests.golden.normalise import Normaliser

PATIENCE_S = 60.0
DETAILS = "grpc-status-details-bin"
DETAIL_KINDS = {
    "ErrorInfo": error_details_pb2.ErrorInfo,
    "BadRequest": error_details_pb2.BadRequest,
    "RetryInfo": error_details_pb2.RetryInfo,
}


# ---- what the file of the protocol says


async def descriptor() -> dict[str, Any]:
    """Services, messages and enumerations of the generated code."""
    file = pb.DESCRIPTOR
    services = {
        service.name: {method.name: _method(method) for method in service.methods}
        for service in file.services_by_name.values()
    }
    return {
        "package": file.package,
        "file": file.name,
        "imports": sorted(one.name for one in file.dependencies),
        "services": services,
        "messages": dict(_messages(file.message_types_by_name.values())),
        "enums": {one.name: _enum(one) for one in file.enum_types_by_name.values()},
        "is_in_the_pool": descriptor_pool.Default().FindFileByName(file.name) is not None,
    }


def _method(method: Any) -> str:
    kinds = [
        ("stream " if streams else "") + message.full_name
        for streams, message in (
            (method.client_streaming, method.input_type),
            (method.server_streaming, method.output_type),
        )
    ]
    return f"{kinds[0]} -> {kinds[1]}"


def _messages(messages: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for message in messages:
        yield message.full_name, {f"{field.number:03}": _field(field) for field in message.fields}
        yield from ((f"{message.full_name}.{one.name}", _enum(one)) for one in message.enum_types)
        yield from _messages(message.nested_types)


def _field(field: Any) -> str:
    kind = (
        next(
            name
            for name in dir(type(field))
            if name.startswith("TYPE_") and getattr(type(field), name) == field.type
        )
        .removeprefix("TYPE_")
        .lower()
    )
    kind = (
        field.message_type.full_name
        if field.message_type
        else field.enum_type.full_name
        if field.enum_type
        else kind
    )
    oneof = field.containing_oneof
    mark = (
        "repeated "
        if field.is_repeated
        else "optional "
        if oneof and oneof.name == f"_{field.name}"
        else f"oneof {oneof.name}: "
        if oneof
        else ""
    )
    return f"{mark}{kind} {field.name}"


def _enum(enum: Any) -> dict[str, str]:
    return {f"{value.number:03}": value.name for value in enum.values}


# ---- calls


class Calls:
    """Makes calls and records what comes of them."""

    def __init__(self, instance: Instance, channel: Any) -> None:
        self.instance = instance
        self.stub = control_pb2_grpc.ControlStub(channel)

    async def note(
        self,
        name: str,
        method: str,
        request: Any,
        *,
        take: int = 0,
        pick: Callable[[Any], Any] | None = None,
        **more: Any,
    ) -> list[Any]:
        """Call, and record replies, metadata and what went wrong. `take`: a stream is left after so many; `pick`: what is kept of the replies' objects."""
        call = getattr(self.stub, method)(request, timeout=PATIENCE_S, **more)
        replies: list[Any] = []
        found: dict[str, Any] = {"request": {method: self.instance.normaliser.value(_object(request))}}
        try:
            if hasattr(call, "__aiter__"):
                async for reply in call:
                    replies.append(reply)
                    if take and len(replies) == take:
                        call.cancel()
                        break
            else:
                replies.append(await call)
            found["code"] = "left" if take else "OK"
        except grpc.aio.AioRpcError as error:
            found |= {
                "code": error.code().name,
                "message": "<text>" if error.details() else "",
                "details": self._details(error.trailing_metadata()),
            }
        if not take:
            initial, trailing = (
                _metadata(await call.initial_metadata()),
                _metadata(await call.trailing_metadata()),
            )
            # Of a call that fails before its first reply, the initial ones come or do not: in one frame with the trailing ones.
            found["metadata"] = (
                {"initial": initial, "trailing": trailing}
                if found["code"] == "OK"
                else sorted({*initial, *trailing})
            )
        values = [self.instance.normaliser.value(_object(reply)) for reply in replies]
        found["replies"] = pick(values) if pick else values
        self.instance.put(name, found)
        return replies

    def _details(self, trailers: Any) -> list[Any]:
        packed = next((value for key, value in trailers or () if key == DETAILS), b"")
        found: list[Any] = []
        for box in status_pb2.Status.FromString(packed).details:
            kind = box.TypeName().rpartition(".")[2]
            detail = DETAIL_KINDS[kind]()
            box.Unpack(detail)
            value = self.instance.normaliser.value(
                json_format.MessageToDict(detail, preserving_proto_field_name=True)
            )
            if kind == "ErrorInfo":
                value["reason"] = detail.reason  # a word for programs, not a sentence
            if kind == "RetryInfo":
                value = {"retry_delay": "<time>"}
            if "attempts" in value.get("metadata", {}):
                value["metadata"]["attempts"] = self.instance.normaliser.value(
                    json.loads(detail.metadata["attempts"])
                )
            found.append({kind: value})
        return found


def _object(message: Any) -> Any:
    value = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _opened(value)


def _opened(value: Any) -> Any:
    """Open what is JSON inside of bytes."""
    if isinstance(value, list):
        return [_opened(one) for one in value]
    if isinstance(value, dict):
        return {
            key: _json(one) if key == "openai_json" and one else _opened(one) for key, one in value.items()
        }
    return value


def _json(text: str) -> Any:
    raw = base64.b64decode(text)
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _metadata(pairs: Any) -> list[str]:
    """Names only; those of gRPC itself differ from version to version."""
    return sorted(
        {key for key, _ in pairs or () if not key.startswith(("grpc-", "user-agent"))}
        | {key for key, _ in pairs or () if key == DETAILS}
    )


def _chat(text: str, **more: Any) -> Any:
    return pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)], **more)


async def control() -> dict[str, Any]:
    """Calls of an appliance with the demo engine."""
    async with (
        serving() as instance,
        grpc.aio.insecure_channel(f"127.0.0.1:{instance.control_port}") as channel,
    ):
        calls = Calls(instance, channel)
        for name, text, more in (
            ("whole", "Hello", {}),
            ("stream", "Hello", {"stream": True}),
            ("thinking", "demo: think", {}),
            ("thinking, stream", "demo: think", {"stream": True}),
            ("status 429", "demo: error 429", {}),
            ("status 503", "demo: error 503", {}),
            ("status 400", "demo: error 400", {}),
            ("breaks off", "demo: cut", {"stream": True}),
            ("a model", "Hello", {"model": "llama3.2-3b-instruct"}),
        ):
            await calls.note(f"Chat: {name}", "Chat", _chat(text, **more))
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": "demo: tool weather"}],
                "tools": [{"type": "function", "function": {"name": "weather"}}],
            }
        ).encode()
        options = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="demo: long 20")])
        options.options.update({"max_tokens": 3, "temperature": 0.5})
        for name, request in {
            "a whole body": pb.ChatRequest(openai_json=body),
            "a whole body, stream": pb.ChatRequest(openai_json=body, stream=True),
            "options": options,
            "nothing": pb.ChatRequest(),
            "bad json": pb.ChatRequest(openai_json=b"{"),
            "both": pb.ChatRequest(openai_json=body, model="x"),
            "no role": pb.ChatRequest(messages=[pb.ChatMessage(content="x")]),
        }.items():
            await calls.note(f"Chat: {name}", "Chat", request)
        receipts = (await calls.note("ListReceipts", "ListReceipts", pb.ListReceiptsRequest(count=3)))[
            0
        ].receipts
        await calls.note("ListReceipts: too many", "ListReceipts", pb.ListReceiptsRequest(count=100_000))
        await calls.note("GetReceipt", "GetReceipt", pb.GetReceiptRequest(id=receipts[0].id))
        await calls.note("GetReceipt: nobody", "GetReceipt", pb.GetReceiptRequest(id="req_0"))
        for method in (
            "GetStatus",
            "GetIdentity",
            "ListBackends",
            "GetWorker",
            "StartWorker",
            "StopWorker",
            "RestartWorker",
            "ListModels",
            "GetQueue",
            "GetVram",
            "ListJobs",
            "ListLoraAdapters",
        ):
            await calls.note(method, method, getattr(pb, f"{method}Request")())
        for method in ("WatchStatus", "WatchBackends", "WatchModels"):
            await calls.note(method, method, getattr(pb, f"{method}Request")(), take=1)
        await _orders(calls)
        await _settings(calls)
        await _life(calls, channel)
        return instance.record


async def _orders(calls: Calls) -> None:
    """Calls that name something which is not there, or is wrong."""
    for name, method, request in (
        ("GetJob", "GetJob", pb.GetJobRequest(id="nobody")),
        ("CancelJob", "CancelJob", pb.CancelJobRequest(id="nobody")),
        ("WatchJob", "WatchJob", pb.WatchJobRequest(id="nobody")),
        ("StartDownload: nothing", "StartDownload", pb.StartDownloadRequest()),
        (
            "StartDownload: no kind",
            "StartDownload",
            pb.StartDownloadRequest(source="ftp://x/y", output_dir="/tmp/x"),
        ),
        (
            "StartDownload: not allowed",
            "StartDownload",
            pb.StartDownloadRequest(source="ns/repo", output_dir="/etc/x"),
        ),
        ("LoadModel", "LoadModel", pb.LoadModelRequest(alias="nobody")),
        ("EjectModel", "EjectModel", pb.EjectModelRequest(alias="nobody")),
        ("ResetModel", "ResetModel", pb.ResetModelRequest(alias="nobody")),
        ("PinModel", "PinModel", pb.PinModelRequest(alias="nobody")),
        ("LoadLoraAdapter: nothing", "LoadLoraAdapter", pb.LoadLoraAdapterRequest()),
        (
            "LoadLoraAdapter: not allowed",
            "LoadLoraAdapter",
            pb.LoadLoraAdapterRequest(name="x", path="/etc/x"),
        ),
        ("UnloadLoraAdapter", "UnloadLoraAdapter", pb.UnloadLoraAdapterRequest(name="nobody")),
        ("AddBackend: nothing", "AddBackend", pb.AddBackendRequest()),
        ("AddBackend: no kind", "AddBackend", pb.AddBackendRequest(url="http://127.0.0.1:9", kind="abacus")),
        ("AddBackend: no address", "AddBackend", pb.AddBackendRequest(url="nonsense")),
        ("RemoveBackend", "RemoveBackend", pb.RemoveBackendRequest(name="nobody")),
        ("DrainBackend", "DrainBackend", pb.DrainBackendRequest(name="nobody")),
        ("SetStrategy: unknown", "SetStrategy", pb.SetStrategyRequest(strategy="cleverest")),
        ("SetStrategy", "SetStrategy", pb.SetStrategyRequest(strategy="round_robin")),
        ("SetStrategy: no pool", "SetStrategy", pb.SetStrategyRequest(strategy="round_robin", pool="nobody")),
        ("Shutdown: no time", "Shutdown", pb.ShutdownRequest(grace_s=-1)),
        ("TailLogs: too many", "TailLogs", pb.TailLogsRequest(count=100_000)),
        ("WatchStatus: no time", "WatchStatus", pb.WatchStatusRequest(interval_s=0.001)),
    ):
        await calls.note(f"refused? {name}", method, request)


async def _settings(calls: Calls) -> None:
    def rows(values: list[Any]) -> Any:
        return {
            row["variable"]: {
                key: row[key] for key in ("default_value", "allowed", "is_secret", "is_reloadable")
            }
            for value in values
            for row in value["settings"]
        }

    def only(values: list[Any]) -> Any:
        return [row["variable"] for value in values for row in value["settings"]]

    await calls.note("GetSettings", "GetSettings", pb.GetSettingsRequest(), pick=rows)
    await calls.note(
        "GetSettings: those that are set", "GetSettings", pb.GetSettingsRequest(set_only=True), pick=only
    )
    await calls.note(
        "Reload: dry run",
        "Reload",
        pb.ReloadRequest(dry_run=True, overrides={"PUBLIC_MODEL": "golden/model", "PROXY_PORT": "14001"}),
        pick=_changes,
    )
    await calls.note(
        "Reload: dry run with problems",
        "Reload",
        pb.ReloadRequest(dry_run=True, overrides={"STREAM_CHUNK_SIZE": "many"}),
        pick=_without_words,
    )
    await calls.note(
        "Reload: refused",
        "Reload",
        pb.ReloadRequest(overrides={"STREAM_CHUNK_SIZE": "many", "NO_SUCH_VARIABLE": "1"}),
    )
    await calls.note("Reload", "Reload", pb.ReloadRequest(overrides={"PUBLIC_MODEL": "golden/model"}))
    await calls.note("Reload: nothing changed", "Reload", pb.ReloadRequest())


def _changes(values: list[Any]) -> Any:
    return [
        {**value, "changes": [{**row, "old_value": "<text>"} for row in value["changes"]]} for value in values
    ]


def _without_words(values: list[Any]) -> Any:
    return [
        {**value, "problems": [{**row, "allowed": "<text>"} for row in value["problems"]]} for value in values
    ]


async def _life(calls: Calls, channel: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    async def well(name: str) -> None:
        found = {}
        for service in ("", "liveness", "readiness", "appliance.control.v1.Control", "nobody"):
            try:
                found[service] = health_pb2.HealthCheckResponse.ServingStatus.Name(
                    (
                        await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
                    ).status
                )
            except grpc.aio.AioRpcError as error:
                found[service] = error.code().name
        calls.instance.put(name, found)

    await well("health: serving")
    await calls.note("Drain", "Drain", pb.DrainRequest(), pick=_states)
    await well("health: draining")
    await calls.note("Chat: draining", "Chat", _chat("Hello"))
    for name, method, path, body in (
        ("healthz", "GET", "/healthz", None),
        ("chat", "POST", CHAT, say("x")),
        ("ollama", "POST", "/api/chat", say("x")),
        ("models", "GET", "/v1/models", None),
        ("metrics", "GET", "/metrics", None),
    ):
        heard = await calls.instance.ask(method, path, body)
        found = calls.instance.normaliser.answer(heard)
        calls.instance.put(
            f"draining: {name}",
            {
                "status": found["status"],
                "headers": found["headers"],
                "body": found["body"] if heard.status == 503 and name != "healthz" else "…",
            },
        )
    await calls.note("Resume", "Resume", pb.ResumeRequest(), pick=_states)
    reply = (
        await calls.note(
            "TailLogs",
            "TailLogs",
            pb.TailLogsRequest(count=1),
            pick=lambda values: [sorted(value) for value in values],
        )
    )[0]
    calls.instance.put("TailLogs: source", reply.source.split(".")[0])
    await calls.note("Shutdown", "Shutdown", pb.ShutdownRequest(grace_s=1))
    calls.instance.put("exit code after Shutdown", await asyncio.to_thread(calls.instance.process.wait, 20))
    await _log(calls.instance)


def _states(values: list[Any]) -> Any:
    return [{key: value["status"][key] for key in ("ok", "state", "in_flight")} for value in values]


async def _log(instance: Instance) -> None:
    """Which events the log has, with which keys; the states in turn."""
    shapes: dict[str, set[tuple[str, ...]]] = {}
    lines = log_lines(instance.log)
    for line in lines:
        shapes.setdefault(str(line.get("event")), set()).add(tuple(sorted(line)))
    instance.put("log: events", {event: sorted(map(list, found)) for event, found in shapes.items()})
    instance.put("log: states", [line["state"] for line in lines if line.get("event") == "state"])


async def control_keys() -> dict[str, Any]:
    """The control API with a token."""
    async with (
        serving(CONTROL_TOKEN="control-token-1", CONTROL_SOCKET="{folder}/control.sock") as instance,
        grpc.aio.insecure_channel(f"127.0.0.1:{instance.control_port}") as channel,
    ):
        calls = Calls(instance, channel)
        for name, metadata in {
            "none": (),
            "wrong": (("authorization", "Bearer nonsense"),),
            "right": (("authorization", "Bearer control-token-1"),),
        }.items():
            await calls.note(f"{name}: GetWorker", "GetWorker", pb.GetWorkerRequest(), metadata=metadata)
            await calls.note(f"{name}: Chat", "Chat", _chat("Hello"), metadata=metadata)
        for name, variables in {
            "none": {},
            "wrong": {"CONTROL_TOKEN": "nonsense"},
            "right": {"CONTROL_TOKEN": "control-token-1"},
        }.items():
            code, _, _ = await instance.run("ctl", "status", **variables)
            instance.put(f"{name}: ctl status", {"exit": code})
        async with grpc.aio.insecure_channel(f"unix:{instance.folder}/control.sock") as socket:
            await Calls(instance, socket).note(
                "unix socket, none: GetWorker", "GetWorker", pb.GetWorkerRequest()
            )
        return instance.record


async def control_engines() -> dict[str, Any]:
    """Backends that come and go over the control API, and adapters on them."""
    async with LoraEngine("vllm", models=("base",)) as one, LoraEngine("vllm", models=("base",)) as two:
        known = {one.url.removeprefix("http://"): "<engine-0>", two.url.removeprefix("http://"): "<engine-1>"}
        async with (
            serving(
                known=known,
                BACKENDS=f"e0={one.url}",
                METRICS_CACHE_TTL_SECONDS="0.1",
                LB_ENABLED="0",
                LORA_ALLOWED_DIRS="{folder}/files",
                NOVITA_API_KEY="",
            ) as instance,
            grpc.aio.insecure_channel(f"127.0.0.1:{instance.control_port}") as channel,
        ):
            calls = Calls(instance, channel)
            await until(lambda: _up(instance, 1), what="the engine is ready")
            await calls.note(
                "AddBackend",
                "AddBackend",
                pb.AddBackendRequest(url=two.url, name="e1", kind="vllm", weight=2, models=["base"]),
                pick=lambda values: [sorted(value["backend"]) for value in values],
            )
            await calls.note("AddBackend: again", "AddBackend", pb.AddBackendRequest(url=two.url, name="e1"))
            await until(lambda: _up(instance, 2), what="both engines are ready")
            await calls.note("ListBackends", "ListBackends", pb.ListBackendsRequest())
            await calls.note("DrainBackend", "DrainBackend", pb.DrainBackendRequest(name="e1"))
            await calls.note(
                "DrainBackend: resume", "DrainBackend", pb.DrainBackendRequest(name="e1", resume=True)
            )
            path = str(instance.folder / "files" / "style")
            await until(lambda: _up(instance, 2), what="both engines are ready")
            await calls.note(
                "LoadLoraAdapter", "LoadLoraAdapter", pb.LoadLoraAdapterRequest(name="style", path=path)
            )
            await calls.note(
                "LoadLoraAdapter: elsewhere",
                "LoadLoraAdapter",
                pb.LoadLoraAdapterRequest(name="style", path=path + "2"),
            )
            await calls.note("ListLoraAdapters", "ListLoraAdapters", pb.ListLoraAdaptersRequest())
            for name, arguments in {
                "lora list": ("lora", "list"),
                "backends": ("backends",),
                "strategy": ("strategy", "round_robin"),
            }.items():
                code, text, _ = await instance.run("ctl", *arguments, "--json")
                instance.put(
                    f"ctl {name}",
                    {
                        "exit": code,
                        "stdout": instance.normaliser.value(json.loads(text))
                        if text.startswith(("{", "["))
                        else text[:200],
                    },
                )
            await calls.note("Chat: with it", "Chat", _chat("Hello", model="style"))
            await calls.note("Chat: no such model", "Chat", _chat("Hello", model="nobody"))
            one.faults = two.faults = ["status_500"]
            await calls.note("Chat: all attempts fail", "Chat", _chat("Hello", model="base"))
            await calls.note(
                "UnloadLoraAdapter", "UnloadLoraAdapter", pb.UnloadLoraAdapterRequest(name="style")
            )
            await calls.note("RemoveBackend", "RemoveBackend", pb.RemoveBackendRequest(name="e1"))
            return instance.record


async def _up(instance: Instance, count: int) -> bool:
    details = (await instance.json("GET", "/health"))["details"]
    return sum(row["ready"] and row["metrics"] is not None for row in details) == count


# ---- settings and the command line


async def settings() -> dict[str, Any]:
    """Every variable, as the settings' verb tells it."""
    async with serving() as instance:
        code, text, _ = await run("settings", "--json", folder=instance.folder)
        rows = json.loads(text)
        instance.put("settings --json", {"exit": code, "keys": sorted({key for row in rows for key in row})})
        instance.put(
            "variables",
            {
                row["variable"]: {
                    key: value
                    for key, value in row.items()
                    if "default" in key or (key.startswith("is_") and key != "is_set")
                }
                for row in rows
            },
        )
        for name, arguments in {
            "settings": (),
            "settings --env-example": ("--env-example",),
            "settings --markdown": ("--markdown",),
            "settings --nonsense": ("--nonsense",),
        }.items():
            code, text, _ = await run("settings", *arguments, folder=instance.folder)
            instance.put(
                name, {"exit": code, "names each variable": all(row["variable"] in text for row in rows)}
            )
        return instance.record


async def command_line() -> dict[str, Any]:
    """Exit codes of the verbs, and the shapes that `ctl --json` prints."""
    async with serving() as instance:
        await instance.ask("POST", CHAT, say("Hello"))
        cases: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
            "no verb": ((), {}),
            "--help": (("--help",), {}),
            "nonsense": (("nonsense",), {}),
            "check": (("check",), {}),
            "check: an argument too many": (("check", "x"), {}),
            "check: wrong": (("check",), {"STREAM_CHUNK_SIZE": "0"}),
            "serve: wrong": (("serve",), {"GPU_MODE": "fake"}),
            "prepare: wrong": (("prepare",), {"GPU_MODE": "fake"}),
            "serve: an open control port": (("serve",), {"CONTROL_HOST": "0.0.0.0"}),
            "models check: none": (("models", "check"), {}),
            "models check: wrong": (("models", "check", "x"), {}),
            "models: no table": (("models",), {}),
            "models show: nobody": (("models", "show", "nobody"), {}),
            "healthcheck": (("healthcheck",), {}),
            "healthcheck: nobody": (("healthcheck",), {"PROXY_PORT": "9", "SIDECAR_PORT": "9"}),
            "ctl: no verb": (("ctl",), {}),
            "ctl: nonsense": (("ctl", "nonsense"), {}),
            "ctl: nobody there": (("ctl", "status"), {"CONTROL_ADDRESS": "127.0.0.1:9"}),
            "ctl receipt: nobody": (("ctl", "receipt", "nobody"), {}),
            "ctl worker start": (("ctl", "worker", "start"), {}),
            "ctl reload: bad": (("ctl", "reload", "--set", "nonsense"), {}),
            "ctl chat": (("ctl", "chat", "Hello"), {}),
            "sidecar: no engine": (("sidecar",), {}),
            "download: nothing": (("download",), {}),
        }
        few = asyncio.Semaphore(3)

        async def one(name: str) -> None:
            arguments, variables = cases[name]
            async with few:
                code, text, _ = await run(
                    *arguments,
                    folder=instance.folder,
                    **{
                        **CALM,
                        "CONTROL_ADDRESS": f"127.0.0.1:{instance.control_port}",
                        "PROXY_PORT": str(instance.port),
                        **variables,
                    },
                )
            instance.put(
                f"exit code: {name}",
                {"arguments": list(arguments), "exit": code, "says something": bool(text)},
            )

        await asyncio.gather(*map(one, cases))
        for arguments in (
            ("status",),
            ("identity",),
            ("backends",),
            ("receipts", "-n", "1"),
            ("jobs",),
            ("lora", "list"),
            ("worker",),
            ("strategy", "round_robin"),
            ("reload", "--dry-run"),
            ("chat", "Hello"),
        ):
            code, text, _ = await instance.run("ctl", *arguments, "--json")
            instance.put(
                f"ctl {' '.join(arguments)} --json",
                {"exit": code, "stdout": [_read(instance.normaliser, line) for line in _documents(text)]},
            )
        code, text, _ = await run("version", folder=instance.folder)
        instance.put(
            "version",
            {"exit": code, "stdout": "<version>" if text.strip().replace(".", "").isdigit() else text},
        )
        code, text, _ = await run("models", "schema", folder=instance.folder)
        instance.put("models schema", {"exit": code, "schema": _schema(json.loads(text))})
        code, text, _ = await run("healthcheck", folder=instance.folder, PROXY_PORT=str(instance.port))
        instance.put("healthcheck", {"exit": code, "stdout": text})
        return instance.record


def _documents(text: str) -> list[str]:
    try:
        json.loads(text)
    except ValueError:
        return text.splitlines()
    return [text]


def _read(normaliser: Normaliser, text: str) -> Any:
    try:
        return normaliser.value(json.loads(text))
    except ValueError:
        return text


def _schema(value: Any) -> Any:
    """The schema without its words."""
    if isinstance(value, dict):
        return {
            key: _schema(one)
            for key, one in value.items()
            if not (
                key in {"description", "title", "$comment", "markdownDescription"} and isinstance(one, str)
            )
        }
    return [_schema(one) for one in value] if isinstance(value, list) else value


async def sidecar() -> dict[str, Any]:
    """`appliance sidecar`: beside one engine, with nothing else."""
    async with LoraEngine("vllm", models=("base",)) as engine:
        known = {engine.url.removeprefix("http://"): "<engine-0>"}
        verb = (
            "sidecar",
            "-E",
            "vllm",
            "-B",
            engine.url,
            "-H",
            "127.0.0.1",
            "-P",
            "{PROXY_PORT}",
            "-I",
            "pod-1",
        )
        async with serving(
            known=known,
            verb=verb,
            ready="/ready",
            LORA_ALLOWED_DIRS="{folder}/files",
            DOWNLOAD_ALLOWED_DIRS="{folder}/files",
            METRICS_CACHE_TTL_SECONDS="0.1",
        ) as instance:
            for method, path in (
                ("GET", "/health"),
                ("HEAD", "/health"),
                ("GET", "/ready"),
                ("GET", "/nothing"),
                ("POST", "/health"),
                ("GET", "/v1/models"),
                ("GET", "/v1/lora_adapters"),
                ("GET", "/v1/jobs"),
                ("GET", "/v1/jobs/nobody"),
                ("POST", CHAT),
                ("GET", "/healthz"),
                ("OPTIONS", "/health"),
            ):
                await instance.note(f"{method} {path}", method, path, {} if method == "POST" else None)
            adapter = {"lora_name": "style", "lora_path": f"{instance.folder}/files/style"}
            for name, path, body in (
                ("load", "/v1/load_lora_adapter", adapter),
                ("load again", "/v1/load_lora_adapter", adapter),
                ("load: not allowed", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc/x"}),
                ("load: bad json", "/v1/load_lora_adapter", "{"),
                ("unload", "/v1/unload_lora_adapter", {"lora_name": "style"}),
                ("unload again", "/v1/unload_lora_adapter", {"lora_name": "style"}),
                (
                    "download: no kind",
                    "/v1/download_model",
                    {"source": "ftp://x/y", "output_dir": f"{instance.folder}/files/x"},
                ),
            ):
                await instance.note(name, "POST", path, body)
            await instance.note_metrics()
            code, text, _ = await run(
                "healthcheck", folder=instance.folder, PROXY_PORT="9", SIDECAR_PORT=str(instance.port)
            )
            instance.put("healthcheck", {"exit": code, "stdout": text})
            lines = [
                line for line in log_lines(instance.log) if line.get("event") != "request"
            ]  # written later
            instance.put(
                "log: events", sorted({(str(line.get("event")), tuple(sorted(line))) for line in lines})
            )
            return instance.record
