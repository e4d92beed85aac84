"""Any other server that speaks OpenAI's API: its list of models is all that can be relied on."""

from typing import ClassVar

from appliance.engines.dialects.contract import Ask, EngineFacts, EngineHealth
from appliance.engines.dialects.queries import longest_of, rows_of_models, served_of
from appliance.engines.upstream.refusal import meaning


class OpenAi:
    """An OpenAI-compatible server of unknown make. It is the last kind that detection tries."""

    kind: ClassVar[str] = "openai"
    running: ClassVar[tuple[str, ...]] = ()
    waiting: ClassVar[tuple[str, ...]] = ()
    notices_leavers: ClassVar[bool] = True

    async def health(self, ask: Ask) -> EngineHealth:
        """/health where it is known; else a server that lists its models is well."""
        heard = await ask("/health", 1.0)
        if heard.status in {404, 405, 401, 403}:
            heard = await ask("/v1/models", 5.0)
            return EngineHealth(
                heard.status == 200,
                False,
                "" if heard.status == 200 else f"/v1/models answered {heard.status}",
            )
        return EngineHealth(
            heard.status == 200,
            heard.status == 503,
            "" if heard.status == 200 else f"/health answered {heard.status}",
        )

    async def learn(self, ask: Ask) -> EngineFacts:
        models = {row["id"]: served_of(row, owner="openai") for row in await rows_of_models(ask)}
        return EngineFacts(models, longest_of(models))

    async def recognise(self, ask: Ask) -> bool:
        """Any list of models will do."""
        return bool(await rows_of_models(ask))

    def refuse(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)
