"""The addresses about LoRA adapters: what a body orders, what is returned on both ports, and how errors look."""

from typing import Any

import pytest

from appliance.base.errors import ApplianceError, Conflict, Forbidden, Invalid, NoSuchModel, UpstreamFailed
from appliance.engines.dialects.contract import LoraReply
from appliance.engines.lora.changes import AdapterChange
from appliance.engines.lora.order import AdapterOrder
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.status_view import AdapterRow, AdapterStatus
from appliance.front.lora import LoraHandlers, as_row, parse_order
from tests.front.requests import json_of, make_request

ADAPTER = Adapter("style", "/adapters/style", "base")


def row(*states: str) -> AdapterRow:
    return AdapterRow(ADAPTER, tuple(AdapterStatus(f"b{n}", "vllm", one) for n, one in enumerate(states)))  # type: ignore[arg-type]


class FakeOrders:
    """Returns `change`, or raises `error`."""

    def __init__(self, change: AdapterChange | None = None, error: ApplianceError | None = None) -> None:
        self.change, self.error = change, error
        self.asked: list[Any] = []

    async def load(self, order: AdapterOrder) -> AdapterChange:
        return self._done(order)

    async def unload(self, name: str, *, partial: bool, more: dict[str, Any]) -> AdapterChange:
        return self._done((name, partial, more))

    async def begin(self, order: AdapterOrder) -> Adapter:
        self.asked.append(order)
        return ADAPTER

    def _done(self, asked: Any) -> AdapterChange:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        assert self.change is not None
        return self.change


def change(text: str | None = "ok", status: int = 200) -> AdapterChange:
    replies = {} if text is None else {"b0": LoraReply("done", status, text)}
    return AdapterChange(row("loaded"), replies, {})


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ({}, AdapterOrder("style")),
        ({"lora_path": "/p", "base_model": "m"}, AdapterOrder("style", "/p", base_model="m")),
        (
            {"source": "hf://a/b", "output_dir": "d", "backend": "b0"},
            AdapterOrder("style", source="hf://a/b", output_dir="d", backend="b0"),
        ),
        ({"pinned": True, "partial": True}, AdapterOrder("style", is_pinned=True, is_partial=True)),
        (
            {"max_workers": 3, "config": {"hf_token": "t"}},
            AdapterOrder("style", max_workers=3, config={"hf_token": "t"}),
        ),
    ],
)
def test_a_body_becomes_an_order(body: dict[str, Any], order: AdapterOrder) -> None:
    assert parse_order({"lora_name": "style", **body}) == order


def test_an_order_needs_a_name() -> None:
    with pytest.raises(Invalid, match="`lora_name` is required") as refused:
        parse_order({"lora_path": "/p"})
    assert refused.value.param == "lora_name"


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ((), "absent"),
        (("loaded", "loaded"), "loaded"),
        (("failed",), "failed"),
        (("loaded", "down"), "partial"),
        (("down", "failed"), "pending"),
    ],
)
def test_one_word_sums_up_all_backends(states: tuple[str, ...], state: str) -> None:
    assert as_row(row(*states))["state"] == state


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("loaded", {"message": "loaded"}),
        ('{"status": "success"}', {"status": "success"}),
        ("[1]", {"message": "[1]"}),
        (None, {"message": "The adapter 'style' is already loaded."}),
    ],
)
async def test_a_load_returns_the_engines_response(text: str | None, body: dict[str, Any]) -> None:
    orders = FakeOrders(change(text, 201))
    request = make_request(body={"lora_name": "style"})
    on_sidecar = await LoraHandlers(orders, is_sidecar=True).load(request)  # type: ignore[arg-type]
    assert (on_sidecar.status, json_of(on_sidecar)) == (200 if text is None else 201, body)
    on_main = await LoraHandlers(orders).load(request)  # type: ignore[arg-type]
    shown = {"lora_name": "style", "base_model": "base", "path": "/adapters/style"}
    assert (on_main.status, json_of(on_main).items() >= {**body, **shown}.items()) == (200, True)


async def test_a_background_load_returns_202_at_once() -> None:
    request = make_request(body={"lora_name": "style", "async_download": True})
    response = await LoraHandlers(FakeOrders()).load(request)  # type: ignore[arg-type]
    body = json_of(response)
    assert (response.status, body["status"], body["output_dir"]) == (202, "started", "/adapters/style")
    assert "GET /v1/lora_adapters" in body["message"]


async def test_an_unload_sends_other_fields_on() -> None:
    orders = FakeOrders(change(None))
    request = make_request(body={"lora_name": "style", "partial": True, "lora_int_id": 3})
    body = json_of(await LoraHandlers(orders).unload(request))  # type: ignore[arg-type]
    assert orders.asked == [("style", True, {"lora_int_id": 3})]
    assert "no backend had loaded it" in body["message"]


REFUSED = {"engine_status": 400, "engine_text": "no such file"}


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (Invalid("bad"), 400, "bad"),
        (Forbidden("no"), 403, "no"),
        (NoSuchModel("none"), 404, "none"),
        (Conflict("busy"), 409, "busy"),
        (UpstreamFailed("down"), 500, "down"),
        (UpstreamFailed("x", details=REFUSED), 400, "HTTP 400: no such file"),
        (
            UpstreamFailed("Start it with --enable-lora.", code="lora_not_enabled", details=REFUSED),
            400,
            "HTTP 400: no such file Start it with --enable-lora.",
        ),
    ],
)
async def test_errors_are_details_on_the_sidecars_port(
    error: ApplianceError, status: int, detail: str
) -> None:
    orders, request = FakeOrders(error=error), make_request(body={"lora_name": "style"})
    response = await LoraHandlers(orders, is_sidecar=True).load(request)  # type: ignore[arg-type]
    assert (response.status, json_of(response)) == (status, {"detail": detail})
    with pytest.raises(type(error)):
        await LoraHandlers(orders).unload(request)  # type: ignore[arg-type]
