"""Any other server with OpenAI's API: only its list of models can be relied on."""

from typing import ClassVar

from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth
from appliance.engines.dialects.queries import (
    HEALTH_TIMEOUT_S,
    QUERY_TIMEOUT_S,
    health_by_status,
    list_models,
    served_model,
    smallest_context,
)

NO_HEALTH_PAGE = {401, 403, 404, 405}


class OpenAi:
    """An OpenAI-compatible server of unknown kind. Detection tries it last."""

    kind: ClassVar[str] = "openai"
    running_metrics: ClassVar[tuple[str, ...]] = ()
    waiting_metrics: ClassVar[tuple[str, ...]] = ()
    stops_on_disconnect: ClassVar[bool] = True
    has_slots: ClassVar[bool] = False
    names_adapters: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Query /health if it exists; else a server that lists its models is ready."""
        reply = await client.get("/health", HEALTH_TIMEOUT_S)
        if reply.status not in NO_HEALTH_PAGE:
            return health_by_status(reply)
        listed = await client.get("/v1/models", QUERY_TIMEOUT_S)
        is_ready = listed.status == 200
        return EngineHealth(is_ready, False, "" if is_ready else f"/v1/models answered {listed.status}")

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Read the models of /v1/models."""
        models = {row["id"]: served_model(row, owner="openai") for row in await list_models(client)}
        return EngineFacts(models, smallest_context(models))

    async def matches(self, client: EngineClient) -> bool:
        """Accept any list of models."""
        return bool(await list_models(client))
