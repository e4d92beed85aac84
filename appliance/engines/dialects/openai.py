"""Any other server that speaks OpenAI's API: its list of models is all that can be relied on."""

from typing import ClassVar

from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth
from appliance.engines.dialects.queries import longest_of, rows_of_models, served_of
from appliance.engines.upstream.refusal import meaning


class OpenAi:
    """An OpenAI-compatible server of unknown make. It is the last kind that detection tries."""

    kind: ClassVar[str] = "openai"
    running_metrics: ClassVar[tuple[str, ...]] = ()
    waiting_metrics: ClassVar[tuple[str, ...]] = ()
    stops_on_disconnect: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """/health where it is known; else a server that lists its models is well."""
        reply = await client.get("/health", 1.0)
        if reply.status in {404, 405, 401, 403}:
            reply = await client.get("/v1/models", 5.0)
            return EngineHealth(
                reply.status == 200,
                False,
                "" if reply.status == 200 else f"/v1/models answered {reply.status}",
            )
        return EngineHealth(
            reply.status == 200,
            reply.status == 503,
            "" if reply.status == 200 else f"/health answered {reply.status}",
        )

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        models = {row["id"]: served_of(row, owner="openai") for row in await rows_of_models(client)}
        return EngineFacts(models, longest_of(models))

    async def matches(self, client: EngineClient) -> bool:
        """Any list of models will do."""
        return bool(await rows_of_models(client))

    def map_error(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)
