"""`appliance ctl lora`: the LoRA adapters of a running appliance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.base import jsons
from appliance.cli import messages as pb
from appliance.cli.client import USAGE, CallFailed
from appliance.cli.render.lora import HEADERS, adapter_lines, adapter_row, order_row
from appliance.cli.session import CommandGroup, Session, exits_on_failure

LOAD_TIMEOUT_S = 3600.0  # it may be downloaded first
app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="List, load and unload LoRA adapters.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name: the model name of requests.")]


@app.command("list")
@exits_on_failure
def list_adapters(ctx: typer.Context) -> None:
    """List the adapters with their state on each backend, and the pending orders."""
    session = Session.of(ctx)
    response = session.client.call(session.client.stub.ListLoraAdapters, pb.ListLoraAdaptersRequest())
    rows = [*map(adapter_row, response.adapters), *map(order_row, response.orders)]
    session.show(response, lambda screen: screen.table(HEADERS, rows))


@app.command()
@exits_on_failure
def load(
    ctx: typer.Context,
    name: Name,
    path: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]", help="Folder or file, as the engines see it; not needed with --source."
        ),
    ] = "",
    source: Annotated[
        str, typer.Option(help="Download it first: hf://namespace/repository, s3://bucket/key …")
    ] = "",
    output_dir: Annotated[
        str,
        typer.Option(help="With --source: the folder to download to. Default: one of the appliance's own."),
    ] = "",
    base_model: Annotated[
        str,
        typer.Option("--base-model", "-b", help="The base model; not needed where there is only one."),
    ] = "",
    backend: Annotated[str, typer.Option(help="Load it on this backend only.")] = "",
    partial: Annotated[
        bool,
        typer.Option("--partial", help="One backend that loads it is enough; the others are retried."),
    ] = False,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Engines that unload adapters by themselves keep this one.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--max-workers", "-w", min=1, max=64, help="Files to download at the same time.")
    ] = 8,
    config_file: Annotated[
        Path | None, typer.Option(help="A JSON file with keys of the download (hf_token, access_key …).")
    ] = None,
) -> None:
    """Load an adapter on every backend of its model; if one refuses it, it is loaded on none."""
    session = Session.of(ctx)
    request = pb.LoadLoraAdapterRequest(
        name=name,
        path=path,
        source=source,
        output_dir=output_dir,
        base_model=base_model,
        backend=backend,
        partial=partial,
        pinned=pinned,
        max_workers=workers,
        config=_read_config(config_file),
    )
    stub = session.client.stub
    adapter = session.client.call(stub.LoadLoraAdapter, request, timeout_s=LOAD_TIMEOUT_S).adapter
    _show(session, adapter, f"{name} is loaded for {adapter.base_model}")


@app.command()
@exits_on_failure
def unload(
    ctx: typer.Context,
    name: Name,
    partial: Annotated[
        bool, typer.Option("--partial", help="Backends that refuse are retried in the background.")
    ] = False,
) -> None:
    """Unload an adapter; on a backend that is down, as soon as it is up again."""
    session = Session.of(ctx)
    stub, request = session.client.stub, pb.UnloadLoraAdapterRequest(name=name, partial=partial)
    adapter = session.client.call(stub.UnloadLoraAdapter, request, timeout_s=LOAD_TIMEOUT_S).adapter
    _show(session, adapter, f"{name} is unloaded")


def _show(session: Session, adapter: pb.LoraAdapter, text: str) -> None:
    session.show(adapter, lambda screen: screen.say("\n".join([text, *adapter_lines(adapter)])))


def _read_config(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        value = jsons.loads(path.read_bytes())
    except (OSError, jsons.InvalidJson) as exc:
        raise CallFailed(f"--config-file {path}: cannot read the file: {exc}.", USAGE) from None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise CallFailed(f"--config-file {path}: it must contain one JSON object of texts.", USAGE)
    return value
