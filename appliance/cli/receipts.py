"""The commands about receipts: what was decided for requests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.base.clock import SystemClock, parse_moment_s
from appliance.cli import messages as pb
from appliance.cli.client import USAGE, CallFailed
from appliance.cli.render.backends import RECEIPT_HEADERS, receipt_pairs, receipt_row
from appliance.cli.session import Session, exits_on_failure

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

FINISHES = ("done", "client_left", "cut_off", "error")


@exits_on_failure
def receipt(
    ctx: typer.Context,
    receipt_id: Annotated[str, typer.Argument(metavar="ID", help="The request's id (x-request-id).")],
) -> None:
    """Show what was decided for one request, and why."""
    session = Session.of(ctx)
    request = pb.GetReceiptRequest(id=receipt_id)
    receipt = session.client.call(session.client.stub.GetReceipt, request).receipt
    session.show(receipt, lambda screen: screen.pairs(receipt_pairs(receipt)))


@exits_on_failure
def receipts(
    ctx: typer.Context,
    count: Annotated[int, typer.Option("--lines", "-n", min=0, max=1000, help="How many.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new ones as requests end.")] = False,
    model: Annotated[
        str, typer.Option(help="Only this model, as the client, the reply or the backend names it.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(metavar="DIGEST", help="Only this caller: digits of its key's SHA-256, or none."),
    ] = "",
    status: Annotated[str, typer.Option(metavar="CODE", help="Only this status: 404, or 4xx.")] = "",
    finish: Annotated[
        str, typer.Option(metavar="WORD", help="Only those that ended so: done, client_left, cut_off, error.")
    ] = "",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only from then on: 10m, 2h, 2026-11-30T18:00:00Z.")
    ] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Only before then.")] = "",
    before: Annotated[str, typer.Option(metavar="ID", help="The next page: only those older than ID.")] = "",
) -> None:
    """List the latest requests, newest first; with --follow oldest first."""
    session = Session.of(ctx)
    wanted = pb.ReceiptFilter(
        model=model,
        key=key,
        status=status,
        finish=parse_finish(finish),
        since=parse_moment("--since", since),
        until=parse_moment("--until", until),
    )
    if follow:
        _follow_receipts(session, wanted, count)
        return
    request = pb.ListReceiptsRequest(count=count, filter=wanted, before=before)
    response = session.client.call(session.client.stub.ListReceipts, request)
    rows = [receipt_row(receipt) for receipt in response.receipts]
    session.show(response, lambda screen: screen.table(RECEIPT_HEADERS, rows))
    if response.next and session.screen.is_terminal and not session.screen.is_json:
        print(f"more: --before {response.next}", file=sys.stderr)


def _follow_receipts(session: Session, wanted: pb.ReceiptFilter, count: int) -> None:
    request = pb.WatchReceiptsRequest(filter=wanted, count=count)
    session.show_each(
        session.client.stream(session.client.stub.WatchReceipts, request),
        lambda response: response.receipt,
        lambda response: session.screen.say("\t".join(receipt_row(response.receipt))),
    )


def parse_finish(text: str) -> pb.RequestFinish:
    """Return how a request ended as the enum's value; "" = any.

    Raises:
        CallFailed: No request ends so (wrong usage).
    """
    if text and text not in FINISHES:
        raise CallFailed(f"--finish {text}: use one of {', '.join(FINISHES)}.", USAGE)
    finish: pb.RequestFinish = getattr(pb, f"REQUEST_FINISH_{text.upper() or 'UNSPECIFIED'}")
    return finish


def parse_moment(option: str, text: str) -> Timestamp | None:
    """Return a moment as a Timestamp; None where none is given.

    Raises:
        CallFailed: It is none (wrong usage).
    """
    from google.protobuf.timestamp_pb2 import Timestamp

    if not text:
        return None
    try:
        return Timestamp(seconds=int(parse_moment_s(text, SystemClock().now_s())))
    except (ValueError, OverflowError):
        raise CallFailed(
            f"{option} {text}: use a time such as 2026-11-30T18:00:00Z, or how long ago, such as 10m.", USAGE
        ) from None


def add_to(ctl: typer.Typer) -> None:
    """Add these commands to `appliance ctl`: receipt, receipts."""
    ctl.command("receipt")(receipt)
    ctl.command("receipts")(receipts)
