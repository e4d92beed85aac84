"""The log of a real llama-server, over HTTP: of one that runs, and of one that has ended."""

from tests.journeys.model_tables import Managed, managed  # noqa: F401 - a fixture


async def test_the_log_is_there_while_it_runs_and_afterwards(managed: Managed) -> None:  # noqa: F811
    appliance = await managed("a", "b")
    url = appliance.running.v1 + "/models/{}/logs"
    async with appliance.session.get(url.format("a")) as response:
        assert (response.status, (await response.json())["lines"]) == (200, [])
    await appliance.chat("a")
    async with appliance.session.get(url.format("a")) as response:
        shown = await response.json()
    assert shown["log"].endswith(f"a_{appliance.runners('a')[0].port}.log")
    assert len(shown["lines"]) > 5
    port = appliance.runners("a")[0].port
    await appliance.manager.eject("a")
    for query in ("", f"?port={port}"):
        async with appliance.session.get(url.format("a") + query) as response:
            assert (await response.json())["log"] == shown["log"]
    async with appliance.session.get(url.format("a") + "?port=1") as response:
        assert (await response.json())["log"] is None
