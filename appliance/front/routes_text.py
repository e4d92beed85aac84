"""The HTTP API's table of addresses, rendered for people: the page docs/http-api.md."""

from collections.abc import Sequence

from appliance.base.markdown import markdown_table
from appliance.front.anthropic.handlers import AnthropicHandlers
from appliance.front.balance import BalanceHandlers
from appliance.front.downloads import DownloadHandlers
from appliance.front.lora import LoraHandlers
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.openapi.handlers import OpenApiHandlers
from appliance.front.passthrough.rules import QUESTIONS, WORK
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.route import Route, RouteGroup
from appliance.front.receipts import ReceiptHandlers
from appliance.front.routes import join_routes
from appliance.front.sidecar import SidecarHandlers, sidecar_routes
from appliance.front.sidecar_metrics import SidecarMetricsHandlers
from appliance.front.system import SystemHandlers
from appliance.front.tickets import TicketHandlers
from appliance.front.ui.handlers import UiHandlers

PAGE_HEAD = """\
# HTTP API

Every address of the HTTP port, in the order in which they are tried. This page is rendered from the route
tables in the code by `appliance routes --markdown`. A running appliance describes its addresses for
programs at `/openapi.json` (OpenAPI 3.1, with the shapes of requests and answers), for people at `/docs`.

- *Access*: `public` is open to all; `client` needs a key of `APPLIANCE_API_KEYS`, where keys are set;
  `operator` needs a key of `OPERATOR_API_KEYS`, or a caller on this machine where no keys are set;
  `account` needs a user's access token, or an API key with the scope that is named. With `ACCOUNTS=1` these
  open `client` (scope `inference`) and, of administrators, `operator` (scope `admin`), too, and a key of
  `APPLIANCE_API_KEYS` opens none of `/api/v1/admin`, also where there are no operators' keys;
  `or ticket`: a browser's EventSource may send a ticket of `/v1/tickets` instead.
- *Errors*: `openai` is `{"error": {"message", "type", "param", "code"}}`, `ollama` is `{"error": text}`,
  `anthropic` is `{"type": "error", "error": {"type", "message"}, "request_id"}`, `detail` is
  `{"detail": text}`, `market` is `{"error": text, "code", "request_id", "details"}`.
- `{name}` is one piece of a path, `{name:.+}` one or more.
- *Method*: HEAD is answered wherever GET is, without a body. OPTIONS says in `Allow` which methods an address
  has, and answers a browser's preflight. Any other method gets 405 with `Allow`, an unknown address 404.
"""
SECTIONS: tuple[tuple[str, tuple[type[RouteGroup], ...]], ...] = (
    ("Health, metrics, receipts", (SystemHandlers, ReceiptHandlers)),
    ("Description of this API", (OpenApiHandlers,)),
    ("Tickets for browsers", (TicketHandlers,)),
    ("The web UI (UI=1)", (UiHandlers,)),
    ("Backends and load balancing", (BalanceHandlers,)),
    ("Models of this machine", (ManagerHandlers,)),
    ("Downloads", (DownloadHandlers,)),
    ("LoRA adapters", (LoraHandlers,)),
    ("OpenAI", (OpenAIHandlers, ResponsesHandlers)),
    ("Anthropic", (AnthropicHandlers,)),
    ("Ollama", (OllamaHandlers,)),
)
SIDECAR: tuple[type[RouteGroup], ...] = (
    SidecarHandlers,
    SidecarMetricsHandlers,
    LoraHandlers,
    DownloadHandlers,
)


def main_sections(
    *, has_accounts: bool = True, has_market: bool | None = None
) -> list[tuple[str, list[Route]]]:
    """Return the addresses of the HTTP port as (title, routes).

    Args:
        has_accounts: With those that are served with ACCOUNTS=1 only.
        has_market: With those that are served with MARKET=1 only; None = as `has_accounts`.
    """
    sections = SECTIONS
    if has_accounts:
        from appliance.front.accounts.groups import SECTIONS as ACCOUNTS  # loads the database's libraries

        sections = (*sections[:1], *ACCOUNTS, *sections[1:])
    if has_accounts if has_market is None else has_market:
        from appliance.front.market.groups import SECTIONS as MARKET

        sections = (*sections, *MARKET)
    return [(title, join_routes(*without_parts(groups))) for title, groups in sections]


def served_sections(routes: Sequence[Route]) -> list[tuple[str, list[Route]]]:
    """Return those addresses of the HTTP port that a server has, as (title, routes)."""
    served = {(route.methods, route.path) for route in routes}
    has_accounts = any(route.access is Access.ACCOUNT for route in routes)
    has_market = any(route.scope == "market" for route in routes)
    return [
        (title, [route for route in group if (route.methods, route.path) in served])
        for title, group in main_sections(has_accounts=has_accounts, has_market=has_market)
    ]


def without_parts(groups: Sequence[type[RouteGroup]]) -> list[RouteGroup]:
    """Make the groups without calling their constructors: `routes` reads no state."""
    return [object.__new__(group) for group in groups]


def as_page() -> str:
    """Render docs/http-api.md: one table for each group of handlers."""
    parts = [PAGE_HEAD]
    parts += [f"## {title}\n\n{_table(routes)}" for title, routes in main_sections()]
    parts.append(_passed_on())
    parts.append(f"## The sidecar's port (SIDECAR_PORT)\n\n{_table(sidecar_routes(*without_parts(SIDECAR)))}")
    return "\n".join(parts)


def as_text() -> str:
    """Render the table for a terminal: method, path, access, errors, what it does."""
    rows = [_cells(route) for _, routes in main_sections() for route in routes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        + "\n"
        for row in rows
    )


def _table(routes: list[Route]) -> str:
    rows = [(methods, f"`{path}`", *more) for methods, path, *more in map(_cells, routes)]
    return markdown_table(("Method", "Path", "Access", "Errors", "What it does"), rows)


def _cells(route: Route) -> tuple[str, str, str, str, str]:
    access = f"{route.access.value} or ticket" if route.takes_ticket else route.access.value
    if route.access is Access.ACCOUNT and route.scope:
        access = f"{access} ({route.scope})"
    return ", ".join(route.methods), route.path, access, route.dialect, route.summary


def _passed_on() -> str:
    """Render which requests of clients are passed on to a backend; the rest is for operators."""
    work = ", ".join(f"`{path}`" for path in sorted(WORK))
    questions = ", ".join(f"`{method} {path}`" for method, path in sorted(QUESTIONS))
    return f"""\
## Passed on to a backend (PASSTHROUGH)

A request at an address that is not listed above is passed on to a backend, unchanged: to one of the model
that its JSON body, its form or its query names, else of the default model. Clients may send what only
computes an answer. Everything else needs an operator: any other address, `/backends/{{name}}/…` and the
header `x-appliance-backend`. Where several models run here and there is no other server, any other address
must name one of them, else it is 404.

- Takes a slot of the backend (POST): {work}
- Takes no slot: {questions}
"""
