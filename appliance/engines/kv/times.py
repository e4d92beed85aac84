"""How long the parts of the KV follower wait."""

from dataclasses import dataclass

from appliance.engines.kv.index import TTL_S


@dataclass(frozen=True, slots=True)
class KvTimes:
    """Waiting times.

    Attributes:
        kind_poll_s: Between two checks whether the engine's kind is known.
        lost_after_s: Without a connection to its publisher, the engine counts as lost after so long.
        reconnect_ms: Before the first try to connect to the publisher again; it doubles up to
            `max_reconnect_ms`.
        retry_s: Before the first retry at Redis; it doubles up to `max_retry_s`.
        renew_s: All entries are written again after so long, before those that find them expire.
        close_s: For the removal of all entries at the end.
    """

    kind_poll_s: float = 1.0
    lost_after_s: float = 30.0
    reconnect_ms: int = 500
    max_reconnect_ms: int = 10_000
    retry_s: float = 0.5
    max_retry_s: float = 30.0
    renew_s: float = TTL_S / 4
    close_s: float = 3.0


DEFAULT_TIMES = KvTimes()
