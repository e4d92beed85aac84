"""What dialects share: reading an engine's JSON, and the list of models that all of them give."""

from dataclasses import replace
from typing import Any

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, QueryReply
from appliance.engines.types import ModelCard, ServedModel

LOOK_S = 5.0  # for questions about models and limits


class UnexpectedReply(ValueError):
    """An engine's answer makes no sense."""


def read_json(reply: QueryReply, what: str) -> dict[str, Any]:
    """Give the object in an answer of 200.

    Raises  OddAnswer
    """
    if reply.status != 200:
        raise UnexpectedReply(f"{what} answered {reply.status}")
    try:
        value = jsons.loads(reply.body)
    except jsons.BadJson as exc:
        raise UnexpectedReply(f"{what} is no JSON: {exc}") from None
    if not isinstance(value, dict):
        raise UnexpectedReply(f"{what} is no JSON object")
    return value


async def rows_of_models(client: EngineClient) -> list[dict[str, Any]]:
    """Give the rows of GET /v1/models that have an id.

    Raises  OddAnswer · WireError
    """
    value = read_json(await client.get("/v1/models", LOOK_S), "/v1/models")
    rows = value.get("data")
    if not isinstance(rows, list):
        raise UnexpectedReply("/v1/models has no list `data`")
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"]]


def served_of(row: dict[str, Any], *, owner: str, context_tokens: int = 0) -> ServedModel:
    """Make a row of /v1/models a model that is served."""
    created, longest, parent, root = (
        row.get("created"),
        row.get("max_model_len"),
        row.get("parent"),
        row.get("root"),
    )
    tokens = longest if isinstance(longest, int) and longest > 0 else context_tokens
    owned = row.get("owned_by")
    card = ModelCard(
        row["id"],
        created if isinstance(created, int) else 0,
        owned if isinstance(owned, str) and owned else owner,
        row["id"],
        context_tokens=tokens,
        parent=parent if isinstance(parent, str) else "",
        path=root if isinstance(parent, str) and isinstance(root, str) else "",
    )
    return ServedModel(card, row["id"])


def with_parents(models: dict[str, ServedModel]) -> dict[str, ServedModel]:
    """Give adapters the context of their parents: theirs is not told."""
    grown = dict(models)
    for name, served in models.items():
        parent = models.get(served.card.parent)
        if parent is not None and not served.card.context_tokens:
            grown[name] = replace(
                served, card=replace(served.card, context_tokens=parent.card.context_tokens)
            )
    return grown


def longest_of(models: dict[str, ServedModel]) -> int:
    """Give the smallest context that all of the models have (0 = not told): what a request can count on."""
    return min((served.card.context_tokens for served in models.values()), default=0)


async def owner_of(client: EngineClient) -> str:
    """Give `owned_by` of the first model, lower case; "" where there is none."""
    try:
        rows = await rows_of_models(client)
    except UnexpectedReply:
        return ""
    return str(rows[0].get("owned_by") or "").lower() if rows else ""


def adapter_of(
    base: ServedModel,
    name: str,
    path: str,
    *,
    owner: str,
    upstream: str = "",
) -> ServedModel:
    """Give an adapter that was loaded for `base`, as the engine would list it."""
    card = ModelCard(
        name,
        base.card.created_s,
        owner,
        upstream or name,
        context_tokens=base.card.context_tokens,
        parent=base.card.id,
        path=path,
    )
    return ServedModel(card, upstream or name)
