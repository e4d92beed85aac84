"""Queries that all dialects use: reading JSON replies, and the list of models."""

from dataclasses import replace
from typing import Any

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, EngineHealth, QueryReply
from appliance.engines.types import ModelCard, ServedModel

HEALTH_TIMEOUT_S = 1.0
QUERY_TIMEOUT_S = 5.0  # for pages about models, limits and adapters
MAX_CAPABILITIES, MAX_FACTS = 16, 32  # of one model
MAX_WORD_CHARS, MAX_FACT_CHARS, MAX_NUMBER = 64, 200, 2**53


class UnexpectedReply(ValueError):
    """An engine's reply is invalid."""


def health_by_status(reply: QueryReply, path: str = "/health") -> EngineHealth:
    """Read a health page by its status alone: 200 is ready, 503 is loading."""
    is_ready = reply.status == 200
    return EngineHealth(is_ready, reply.status == 503, "" if is_ready else f"{path} answered {reply.status}")


def read_json(reply: QueryReply, path: str) -> dict[str, Any]:
    """Return the JSON object of a reply.

    Raises:
        UnexpectedReply: The status is not 200, or the body is not a JSON object.
    """
    if reply.status != 200:
        raise UnexpectedReply(f"{path} answered {reply.status}")
    try:
        value = jsons.loads(reply.body)
    except jsons.InvalidJson as exc:
        raise UnexpectedReply(f"{path} is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise UnexpectedReply(f"{path} is not a JSON object")
    return value


async def is_appliance(client: EngineClient) -> bool:
    """Whether the server is another appliance: it passes on its engines' own pages and metrics.

    Raises:
        WireError: It cannot be reached.
    """
    reply = await client.get("/healthz", QUERY_TIMEOUT_S)
    if reply.status not in (200, 503):
        return False
    try:
        value = jsons.loads(reply.body)
    except jsons.InvalidJson:
        return False
    return isinstance(value, dict) and {"state", "version", "public_model", "upstream_base"} <= set(value)


async def list_models(client: EngineClient) -> list[dict[str, Any]]:
    """Return the rows of GET /v1/models that have an id.

    A row without `capabilities` gets those of the list `models`, where llama-server has them.

    Raises:
        UnexpectedReply: The page has no list of models.
        WireError: The engine cannot be reached.
    """
    value = read_json(await client.get("/v1/models", QUERY_TIMEOUT_S), "/v1/models")
    rows, others = value.get("data"), value.get("models")
    if not isinstance(rows, list):
        raise UnexpectedReply("/v1/models has no list `data`")
    named = [other for other in others if isinstance(other, dict)] if isinstance(others, list) else []
    said = {
        name: {"capabilities": row.get("capabilities")}
        for row in named
        if isinstance(name := row.get("name"), str)
    }
    return [
        {**said.get(row["id"], {}), **row}
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("id"), str) and row["id"]
    ]


def read_capabilities(value: Any) -> tuple[str, ...]:
    """Return a list of short words; () for anything else."""
    words = value[:MAX_CAPABILITIES] if isinstance(value, list) else []
    return tuple(word for word in words if isinstance(word, str) and 0 < len(word) <= MAX_WORD_CHARS)


def read_meta(value: Any) -> tuple[tuple[str, int | float | str], ...]:
    """Return the facts of a row's `meta` that are numbers or short texts; () for anything else."""
    facts = list(value.items())[:MAX_FACTS] if isinstance(value, dict) else []
    return tuple((name, fact) for name, fact in facts if len(name) <= MAX_WORD_CHARS and _is_fact(fact))


def _is_fact(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_FACT_CHARS
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def served_model(row: dict[str, Any], *, owner: str, context_tokens: int = 0) -> ServedModel:
    """Make a row of /v1/models a served model.

    Args:
        row: With an `id`; see `list_models`.
        owner: For a row without `owned_by`.
        context_tokens: For a row without `max_model_len`; 0 = unknown.
    """
    created, longest = row.get("created"), row.get("max_model_len")
    parent, root, owned = row.get("parent"), row.get("root"), row.get("owned_by")
    card = ModelCard(
        row["id"],
        created if isinstance(created, int) else 0,
        owned if isinstance(owned, str) and owned else owner,
        row["id"],
        context_tokens=longest if isinstance(longest, int) and longest > 0 else context_tokens,
        parent=parent if isinstance(parent, str) else "",
        path=root if isinstance(parent, str) and isinstance(root, str) else "",
        capabilities=read_capabilities(row.get("capabilities")),
        meta=read_meta(row.get("meta")),
    )
    return ServedModel(card, row["id"])


def with_parent_context(models: dict[str, ServedModel]) -> dict[str, ServedModel]:
    """Give adapters the context of their base models: engines do not list it."""
    complete = dict(models)
    for name, served in models.items():
        parent = models.get(served.card.parent)
        if parent is not None and not served.card.context_tokens:
            card = replace(served.card, context_tokens=parent.card.context_tokens)
            complete[name] = replace(served, card=card)
    return complete


def as_embeddings(models: dict[str, ServedModel]) -> dict[str, ServedModel]:
    """Mark the models of a server that gives only embeddings or scores."""
    return {name: replace(one, card=replace(one.card, is_text=False)) for name, one in models.items()}


def smallest_context(models: dict[str, ServedModel]) -> int:
    """Return the smallest context of the models in tokens (0 = unknown), which every request has."""
    return min((served.card.context_tokens for served in models.values()), default=0)


def read_count(reply: QueryReply, path: str, name: str) -> int:
    """Return a count in a reply: a number, or the length of a list.

    Raises:
        UnexpectedReply: There is none.
    """
    found = read_json(reply, path).get(name)
    if isinstance(found, list):
        return len(found)
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return found
    raise UnexpectedReply(f"{path} has no `{name}`")


async def first_owner(client: EngineClient) -> str:
    """Return `owned_by` of the first model in lower case; "" without one. Raises WireError."""
    try:
        rows = await list_models(client)
    except UnexpectedReply:
        return ""
    return str(rows[0].get("owned_by") or "").lower() if rows else ""


def unlisted_adapter(base: ServedModel, name: str, path: str, *, owner: str) -> ServedModel:
    """Return an adapter that was loaded for `base`, as the engine would list it."""
    card = ModelCard(
        name,
        base.card.created_s,
        owner,
        name,
        context_tokens=base.card.context_tokens,
        parent=base.card.id,
        path=path,
    )
    return ServedModel(card, name)
