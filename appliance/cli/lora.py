"""`appliance ctl lora`: the LoRA adapters of a running appliance."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.base import jsons
from appliance.cli.calls import USAGE, CallFailed
from appliance.cli.session import Session, told
from appliance.cli.show import Screen

LOAD_PATIENCE_S = 3600.0  # it may be downloaded first
HEADERS = ["NAME", "BASE MODEL", "STATE", "BACKENDS", "PATH"]
app = typer.Typer(no_args_is_help=True, help="See, load and unload LoRA adapters.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The adapter's name: what clients ask for.")]


@app.command("list")
@told
def list_them(ctx: typer.Context) -> None:
    """List the adapters with how they stand on each backend, and the orders that are not done."""
    session: Session = ctx.obj
    answer = session.calls.ask("ListLoraAdapters")
    session.show(
        answer,
        lambda screen: screen.table(
            HEADERS,
            [
                *(row_of(session, adapter) for adapter in answer.adapters),
                *(order_row(session, order) for order in answer.orders),
            ],
        ),
    )


@app.command()
@told
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
        str, typer.Option(help="With --source: where to; else a folder of the appliance's own.")
    ] = "",
    base_model: Annotated[
        str,
        typer.Option(
            "--base-model", "-b", help="The model that it is for; not needed where there is only one."
        ),
    ] = "",
    backend: Annotated[str, typer.Option(help="Only this backend is to have it.")] = "",
    partial: Annotated[
        bool, typer.Option("--partial", help="One backend that has it is enough; the others are tried again.")
    ] = False,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Engines that unload adapters by themselves keep this one.")
    ] = False,
    workers: Annotated[
        int, typer.Option("--max-workers", "-w", min=1, max=64, help="Files that are downloaded at a time.")
    ] = 8,
    config_file: Annotated[
        Path | None, typer.Option(help="A JSON file with keys of the download (hf_token, access_key …).")
    ] = None,
) -> None:
    """Load an adapter on every backend of its model; where one refuses, it is loaded on none."""
    session: Session = ctx.obj
    answer = session.calls.ask(
        "LoadLoraAdapter",
        patience_s=LOAD_PATIENCE_S,
        name=name,
        path=path,
        source=source,
        output_dir=output_dir,
        base_model=base_model,
        backend=backend,
        partial=partial,
        pinned=pinned,
        max_workers=workers,
        config=_config(config_file),
    ).adapter
    session.show(
        answer, lambda screen: _say(screen, session, answer, f"{name} is loaded for {answer.base_model}")
    )


@app.command()
@told
def unload(
    ctx: typer.Context,
    name: Name,
    partial: Annotated[
        bool, typer.Option("--partial", help="What a backend refuses is tried again in the background.")
    ] = False,
) -> None:
    """Unload an adapter; a backend that is down is told when it comes back."""
    session: Session = ctx.obj
    answer = session.calls.ask(
        "UnloadLoraAdapter", patience_s=LOAD_PATIENCE_S, name=name, partial=partial
    ).adapter
    session.show(answer, lambda screen: _say(screen, session, answer, f"{name} is unloaded"))


def _say(screen: Screen, session: Session, adapter: Any, text: str) -> None:
    screen.say(text)
    for one in adapter.backends:
        screen.say(
            f"  {one.backend}: {word_of(session, one.state)}" + (f" ({one.detail})" if one.detail else "")
        )


def row_of(session: Session, adapter: Any) -> list[str]:
    """Give an adapter's row; one that an engine has by itself is marked."""
    states = [word_of(session, one.state) for one in adapter.backends]
    state = (
        states[0]
        if len(set(states)) == 1
        else "partly loaded"
        if "loaded" in states
        else "pending"
        if states
        else "nowhere"
    )
    backends = ", ".join(
        f"{one.backend} {word}" if len(set(states)) > 1 else one.backend
        for one, word in zip(adapter.backends, states, strict=True)
    )
    return [
        adapter.name,
        adapter.base_model,
        state + ("" if adapter.is_declared else ", not declared"),
        backends,
        adapter.path,
    ]


def order_row(session: Session, order: Any) -> list[str]:
    """Give the row of an order that is not done."""
    state = (
        str(session.calls.messages.LoraOrderPhase.Name(order.phase)).removeprefix("LORA_ORDER_PHASE_").lower()
    )
    if order.error:
        state += f": {order.error}"
    elif order.total_bytes:
        state += f" {100 * order.done_bytes // order.total_bytes} %"
    return [order.name, "", state, "", order.path]


def word_of(session: Session, value: int) -> str:
    """Give a state's word."""
    return str(session.calls.messages.LoraState.Name(value)).removeprefix("LORA_STATE_").lower()


def _config(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        value = jsons.loads(path.read_bytes())
    except (OSError, jsons.InvalidJson) as exc:
        raise CallFailed(f"--config-file {path}: it cannot be read: {exc}.", USAGE) from None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise CallFailed(f"--config-file {path}: it must hold one JSON object of texts.", USAGE)
    return value
