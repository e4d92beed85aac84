"""An orchestrator's journey: the whole appliance, steered with real gRPC clients and `appliance ctl` while HTTP clients use it."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.base import jsons
from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc
from tests.control.fake_appliance import free_port

PATIENCE_S = 30


@pytest.fixture
def stub(appliance: Any) -> Iterator[control_pb2_grpc.ControlStub]:
    with grpc.insecure_channel(appliance.control_address) as channel:
        yield control_pb2_grpc.ControlStub(channel)


@pytest.fixture
def health(appliance: Any) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(appliance.control_address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def http(appliance: Any, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, str], Any]:
    """Ask over HTTP; give status, headers and the JSON of the answer."""
    data = None if body is None else jsons.dumps(body)
    request = urllib.request.Request(
        appliance.base_url.rstrip("/") + path, data, {"content-type": "application/json"}
    )
    try:
        answer = urllib.request.urlopen(request, timeout=PATIENCE_S)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, jsons.loads(answer.read())


def say(text: str, **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)], **fields)


def chat(appliance: Any, text: str) -> tuple[int, dict[str, str], Any]:
    return http(appliance, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]})


def ctl(appliance: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as an operator does."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CONTROL_")}
    return subprocess.run(
        [sys.executable, "-m", "appliance", "ctl", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environ, "CONTROL_ADDRESS": appliance.control_address},
    )


def test_both_doors_tell_the_same_state(appliance: Any, stub: Any) -> None:
    status = stub.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE_S).status
    code, _, healthz = http(appliance, "/healthz")
    assert code == 200
    assert status.ok is healthz["ok"] is True
    assert (status.public_model, status.upstream_base, list(status.aliases)) == (
        healthz["public_model"],
        healthz["upstream_base"],
        healthz["aliases"],
    )
    assert list(status.novita_endpoints) == healthz["novita_endpoints"]
    assert status.started_at.ToNanoseconds() // 10**6 == round(healthz["started_at_s"] * 1000 // 1)
    assert {step.name for step in status.steps} == {step["name"] for step in healthz["steps"]}
    identity = stub.GetIdentity(pb.GetIdentityRequest(), timeout=PATIENCE_S)
    assert identity.machine_id == status.machine_id
    assert len(identity.machine_id) == 32


def test_grpc_chat_equals_http_and_shares_its_receipt(appliance: Any, stub: Any) -> None:
    _, headers, over_http = chat(appliance, "hello")
    reply, receipt = stub.Chat(say("hello"), timeout=PATIENCE_S)
    assert reply.reply.text == over_http["choices"][0]["message"]["content"]
    assert jsons.loads(reply.reply.openai_json)["usage"] == over_http["usage"]
    streamed = list(stub.Chat(say("hello", stream=True), timeout=PATIENCE_S))
    assert "".join(part.delta.text for part in streamed) == reply.reply.text
    assert streamed[-1].receipt.streamed
    code, _, kept = http(appliance, f"/receipts/{receipt.receipt.id}")
    assert (code, kept["backend"], kept["finish"]) == (200, receipt.receipt.backend, "done")
    found = stub.GetReceipt(pb.GetReceiptRequest(id=headers["x-request-id"]), timeout=PATIENCE_S).receipt
    assert (found.route, found.status) == ("/v1/chat/completions", 200)
    wanted = [streamed[-1].receipt.id, receipt.receipt.id, headers["x-request-id"]]
    listed = [r.id for r in stub.ListReceipts(pb.ListReceiptsRequest(count=10), timeout=PATIENCE_S).receipts]
    assert [i for i in listed if i in wanted] == wanted  # newest first


def test_a_whole_openai_body_passes_unchanged(stub: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "demo: tool look_up"}],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    }
    reply, _ = stub.Chat(pb.ChatRequest(openai_json=jsons.dumps(body)), timeout=PATIENCE_S)
    assert reply.reply.finish_reason == "tool_calls"
    assert (
        jsons.loads(reply.reply.openai_json)["choices"][0]["message"]["tool_calls"][0]["function"]["name"]
        == "look_up"
    )


def test_an_error_status_of_the_engine_becomes_a_status_code(stub: Any) -> None:
    for status, code in ((429, grpc.StatusCode.RESOURCE_EXHAUSTED), (503, grpc.StatusCode.UNAVAILABLE)):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Chat(say(f"demo: error {status}"), timeout=PATIENCE_S))
        assert caught.value.code() is code


def test_a_cancelled_chat_leaves_nothing_running(stub: Any) -> None:
    call = stub.Chat(say("demo: stall", stream=True))
    assert next(call).WhichOneof("part") == "delta"
    request_id = dict(call.initial_metadata())["x-request-id"]
    (busy,) = stub.ListBackends(pb.ListBackendsRequest(), timeout=PATIENCE_S).backends
    assert busy.in_flight == 1
    watch = stub.WatchStatus(pb.WatchStatusRequest(interval_s=1), timeout=PATIENCE_S)
    call.cancel()
    for _ in watch:  # once a second; the deadline is the bound
        if not stub.ListBackends(pb.ListBackendsRequest(), timeout=PATIENCE_S).backends[0].in_flight:
            break
    watch.cancel()
    assert (
        stub.GetReceipt(pb.GetReceiptRequest(id=request_id), timeout=PATIENCE_S).receipt.finish
        == "client_left"
    )


def test_draining_refuses_new_requests_and_finishes_running_ones(
    appliance: Any, stub: Any, health: Any
) -> None:
    ready = health_pb2.HealthCheckRequest(service="readiness")
    running = stub.Chat(say("demo: slow 1"), timeout=PATIENCE_S)
    assert running.initial_metadata()
    stub.Drain(pb.DrainRequest(), timeout=PATIENCE_S)
    try:
        assert health.Check(ready, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert chat(appliance, "hello")[0] == 503
        assert http(appliance, "/healthz")[0] == 503
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Chat(say("hello"), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [part.WhichOneof("part") for part in running] == ["reply", "receipt"]
    finally:
        stub.Resume(pb.ResumeRequest(), timeout=PATIENCE_S)
    assert health.Check(ready, timeout=PATIENCE_S).status == health_pb2.HealthCheckResponse.SERVING
    assert chat(appliance, "hello")[0] == 200


def test_reloads_do_not_disturb_a_running_stream(appliance: Any, stub: Any) -> None:
    def models() -> list[str]:
        return [model["id"] for model in http(appliance, "/v1/models")[2]["data"]]

    def reload(dry_run: bool = False, **overrides: str) -> Any:
        return stub.Reload(pb.ReloadRequest(dry_run=dry_run, overrides=overrides), timeout=PATIENCE_S)

    before = models()
    running = stub.Chat(say("demo: stall", stream=True))
    next(running)
    try:
        tried = reload(dry_run=True, PUBLIC_MODEL="journey/model")
        assert ("PUBLIC_MODEL", "journey/model", False) in [
            (c.variable, c.new_value, tried.applied) for c in tried.changes
        ]
        assert models() == before
        assert reload(PUBLIC_MODEL="journey/model").applied
        assert "journey/model" in models()
        assert (
            stub.Chat(say("hello"), timeout=PATIENCE_S).next().reply.openai_json.count(b"journey/model") == 1
        )
        assert running.is_active()
        with pytest.raises(grpc.RpcError) as caught:
            reload(STREAM_CHUNK_SIZE="many", NO_SUCH_VARIABLE="1")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "STREAM_CHUNK_SIZE" in caught.value.details()
        assert "journey/model" in models()
    finally:
        reload(PUBLIC_MODEL="")
        running.cancel()
    assert models() == before


def test_settings_hide_secrets_and_say_what_a_reload_can_change(stub: Any) -> None:
    rows = {
        row.variable: row for row in stub.GetSettings(pb.GetSettingsRequest(), timeout=PATIENCE_S).settings
    }
    assert rows["NOVITA_API_KEY"].is_secret
    assert rows["NOVITA_API_KEY"].value in {"", "(hidden)"}
    assert rows["PUBLIC_MODEL"].is_reloadable
    assert not rows["PROXY_PORT"].is_reloadable


def test_the_log_can_be_followed_while_requests_run(appliance: Any, stub: Any) -> None:
    lines = stub.TailLogs(pb.TailLogsRequest(count=5, follow=True), timeout=PATIENCE_S)
    next(lines)
    request_id = chat(appliance, "hello")[1]["x-request-id"]
    assert any(request_id in line.text for line in lines)  # ends at the line, or fails at the deadline
    lines.cancel()


def test_the_command_line_steers_the_whole_appliance(appliance: Any) -> None:
    status = ctl(appliance, "status", "--json")
    assert (status.returncode, jsons.loads(status.stdout)["ok"]) == (0, True)
    said = ctl(appliance, "chat", "hello from a terminal")
    assert said.returncode == 0
    assert "hello from a terminal" in said.stdout
    listed = jsons.loads(ctl(appliance, "receipts", "--json", "-n", "1").stdout)["receipts"][0]
    assert listed["route"].endswith("Control/Chat")
    assert listed["id"] in ctl(appliance, "receipt", listed["id"]).stdout
    assert ctl(appliance, "drain").returncode == 0
    try:
        refused = ctl(appliance, "chat", "hello")
        assert (refused.returncode, refused.stderr) == (
            1,
            "error: The appliance is draining and takes no new requests.\n",
        )
    finally:
        assert ctl(appliance, "resume").returncode == 0
    assert ctl(appliance, "worker", "start").returncode == 1
    assert "LOG_LEVEL" in ctl(appliance, "settings").stdout


def test_an_unsafe_control_api_is_refused_before_the_start() -> None:
    environ = {**os.environ, "CONTROL_HOST": "0.0.0.0", "CONTROL_TOKEN": ""}
    for verb in ("check", "serve"):
        ended = subprocess.run(
            [sys.executable, "-m", "appliance", verb], capture_output=True, text=True, timeout=60, env=environ
        )
        assert ended.returncode == 78
        assert "CONTROL_HOST=0.0.0.0" in ended.stderr
        assert "CONTROL_TOKEN" in ended.stderr


def test_shutdown_finishes_running_requests_and_exits_with_0(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CONTROL_")}
    environ |= {
        "PROXY_PORT": str(free_port()),
        "CONTROL_PORT": "0",
        "CONTROL_SOCKET": str(path),
        "STATE_DIR": str(tmp_path / "state"),
        "NAT_REDIRECT": "off",
        "GPU_MODE": "none",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "appliance", "serve"], env=environ, stdout=subprocess.DEVNULL
    ) as process:
        try:
            with grpc.insecure_channel(
                f"unix:{path}", [("grpc.initial_reconnect_backoff_ms", 100)]
            ) as channel:
                stub = control_pb2_grpc.ControlStub(channel)
                for status in stub.WatchStatus(
                    pb.WatchStatusRequest(), wait_for_ready=True, timeout=PATIENCE_S
                ):
                    if status.status.ok:
                        break
                running = stub.Chat(say("demo: slow 1"), timeout=PATIENCE_S)
                assert running.initial_metadata()
                stub.Shutdown(pb.ShutdownRequest(), timeout=PATIENCE_S)
                assert [part.WhichOneof("part") for part in running] == ["reply", "receipt"]
            assert process.wait(PATIENCE_S) == 0
            assert not path.exists()
        finally:
            process.kill()
