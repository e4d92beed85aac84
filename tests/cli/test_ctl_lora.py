"""`appliance ctl lora` against a whole running appliance and stand-ins for engines."""

import re
from pathlib import Path

from appliance.base import jsons
from tests.cli.test_ctl_backends import Terminal
from tests.fakes.file_hubs import Hub
from tests.fakes.lora_engines import LoraEngine
from tests.journeys.running import until
from tests.journeys.test_backends import QUICK, ask


async def test_an_adapter_is_loaded_listed_and_unloaded(start) -> None:
    async with LoraEngine("vllm") as first, LoraEngine("sglang") as second:
        second.adapters["own"] = "/elsewhere/own"
        running = await start(
            BACKENDS=f"v={first.url},s={second.url}", LORA_ALLOWED_DIRS="/adapters", **QUICK
        )
        terminal = Terminal(running)
        assert await terminal.run("lora", "load", "style", "/adapters/style", "--base-model", "tiny") == 0, (
            terminal.err
        )
        assert terminal.out.splitlines() == ["style is loaded for tiny", "  v: loaded", "  s: loaded"]
        assert await terminal.run("lora", "list") == 0
        assert terminal.out.splitlines()[1:] == [
            "style\ttiny\tloaded\tv, s\t/adapters/style",
            "own\ttiny\tloaded, not declared\ts\t/elsewhere/own",
        ]
        assert await terminal.run("lora", "list", "--json") == 0
        assert [one["state"] for one in jsons.loads(terminal.out)["adapters"][0]["backends"]] == [
            "LORA_STATE_LOADED"
        ] * 2
        first.refuses = (500, "busy")
        assert await terminal.run("lora", "unload", "style") == 1
        assert "busy" in terminal.err
        assert await terminal.run("lora", "unload", "style", "--partial") == 0
        assert terminal.out.splitlines()[:2] == [
            "style is unloaded",
            "  v: unloading (The backend v refused the adapter 'style' (HTTP 500): "
            + '{"error": {"message": "busy", "type": "InternalServerError", "param": null, "code": 500}})',
        ]
        assert second.adapters == {"own": "/elsewhere/own"}


async def test_pending_orders_are_listed(start, tmp_path: Path) -> None:
    async with LoraEngine("vllm") as engine, Hub({"adapter.bin": bytes(1 << 20)}) as hub:
        running = await start(BACKENDS=f"v={engine.url}", HF_ENDPOINT=hub.url, **QUICK)
        hub.drip_s = 0.5
        order = {"lora_name": "style", "source": "ns/repo", "async_download": True}
        assert (await ask(running, order, path="/v1/load_lora_adapter"))[0] == 202
        orders = running.appliance.lora_orders
        assert await until(
            lambda: (one := orders.pending["style"]).progress is not None and bool(one.progress.total_bytes)
        )
        terminal = Terminal(running)
        assert await terminal.run("lora", "list") == 0
        name, base, state, backends, path = terminal.out.splitlines()[1].split("\t")
        assert (name, base, backends, path) == (
            "style",
            "",
            "",
            str(tmp_path / "state" / "adapters" / "style"),
        )
        assert re.fullmatch(r"downloading \d+ %", state)
        assert await terminal.run("lora", "unload", "style") == 0
        hub.is_gated = True
        assert (await ask(running, order, path="/v1/load_lora_adapter"))[0] == 202
        assert await until(lambda: orders.pending["style"].phase == "failed")
        assert await terminal.run("lora", "list") == 0
        assert "\tfailed: ns/repo at" in terminal.out
        assert await terminal.run("lora", "list", "--json") == 0
        (row,) = jsons.loads(terminal.out)["orders"]
        assert (row["phase"], row["name"], "is gated" in row["error"]) == (
            "LORA_ORDER_PHASE_FAILED",
            "style",
            True,
        )


async def test_refusals_are_shown(start, tmp_path: Path) -> None:
    async with LoraEngine("vllm", can_load=False) as engine:
        running = await start(BACKENDS=f"v={engine.url}", LORA_ALLOWED_DIRS="/adapters", **QUICK)
        terminal = Terminal(running)
        for arguments, words in (
            (("style", "/etc/passwd"), "outside the folders"),
            (("style", "/adapters/../x"), "without `..`"),
            (("style",), "`lora_path`"),
            (("style", "/adapters/a"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
            (("style", "--source", "gopher://a/b"), "Unknown source gopher://"),
        ):
            assert await terminal.run("lora", "load", *arguments) == (4 if "/etc" in arguments[-1] else 1)
            assert words in terminal.err
        assert await terminal.run("lora", "unload", "nobody") == 1
        (tmp_path / "bad.json").write_text("[")
        assert (
            await terminal.run(
                "lora", "load", "x", "/adapters/x", "--config-file", str(tmp_path / "bad.json")
            )
            == 2
        )
