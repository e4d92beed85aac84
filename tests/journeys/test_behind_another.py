"""An appliance whose backend is another appliance."""

import httpx

from tests.journeys.running import Start, until


async def test_the_other_appliance_is_no_engine(start: Start) -> None:
    inner = await start()
    outer = await start(BACKENDS=inner.base_url)
    router = outer.appliance.router
    assert await until(lambda: any(state.is_up for state in router.states()))
    (state,) = router.states()
    assert state.kind == "openai"
    async with httpx.AsyncClient(base_url=outer.base_url, timeout=20) as http:
        response = await http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]}
        )
        assert "You said: Hello" in response.text
