"""What goes along where a target of the proxy redirects to another host."""

from appliance.market.proxy.fields import for_another_host


def test_no_field_that_may_hold_a_secret_goes_to_another_host() -> None:
    sent = [
        ("Accept", "application/json"),
        ("Content-Type", "text/plain"),
        ("Authorization", "Bearer t"),
        ("X-My-Own-Key", "k"),
        ("User-Agent", "curl"),
    ]
    assert [name for name, _ in for_another_host(sent)] == ["Accept", "Content-Type", "User-Agent"]
