"""What the KV follower counted, as metric families for the sidecar's page."""

from collections import Counter
from collections.abc import Mapping

from appliance.base.metrics.exposition_read import MetricFamily, MetricSample, escape_label, make_gauge
from appliance.engines.kv.events import TAGS, EventBatch
from appliance.engines.metrics.families import PREFIX

LOST = ("sequence_gap", "not_understood", "too_many_blocks")
LEFT_OUT = ("adapter", "extra_keys", "other_memory", "other_group", "lapsed")


class KvCounters:
    """Counters since the start.

    Attributes:
        seen: Events by their tag.
        lost: Messages, things and blocks that were lost, by reason.
        left_out: Blocks that the index does not get, by reason.
        late: Events that arrived while the index was down.
        engine_restarts: Restarts that the engine's sequence showed.
        index_failures: Failed tries to write the index.
    """

    def __init__(self) -> None:
        self.seen = Counter(dict.fromkeys(TAGS, 0))
        self.lost = Counter(dict.fromkeys(LOST, 0))
        self.left_out = Counter(dict.fromkeys(LEFT_OUT, 0))
        self.late = 0
        self.engine_restarts = 0
        self.index_failures = 0

    def add(self, batch: EventBatch) -> None:
        """Count a message."""
        self.lost["not_understood"] += batch.invalid
        self.seen.update(batch.seen)
        self.left_out.update(batch.left_out)

    def families(self, *, is_connected: bool, is_index_up: bool, blocks: int) -> list[MetricFamily]:
        """Return the metric families, with three gauges for the present state."""
        return [
            _counters("kv_events", "KV events of the engine, by kind", "event", self.seen),
            _counters(
                "kv_events_lost",
                "Messages missing in the engine's sequence, things that were not understood, "
                "and blocks beyond the limit",
                "reason",
                self.lost,
            ),
            _counters(
                "kv_blocks_left_out", "Blocks that are not indexed, by reason", "reason", self.left_out
            ),
            _counter(
                "kv_events_late",
                "KV events that arrived while the index was down; it gets the state afterwards",
                self.late,
            ),
            _counter(
                "kv_engine_restarts", "Restarts of the engine seen in its KV events", self.engine_restarts
            ),
            _counter("kv_index_failures", "Failed tries to write the index", self.index_failures),
            make_gauge(
                PREFIX + "kv_events_connected",
                "1 while the engine's publisher of KV events is connected",
                is_connected,
            ),
            make_gauge(
                PREFIX + "kv_index_up",
                "1 while the index of blocks can be written; 0 also before the first event",
                is_index_up,
            ),
            make_gauge(PREFIX + "kv_blocks", "Blocks that the engine is known to have", blocks),
        ]


def _counter(name: str, text: str, value: int) -> MetricFamily:
    full = (PREFIX + name + "_total").encode()
    return MetricFamily(full, "counter", text.encode(), [MetricSample(full, b"", b"%d" % value)])


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> MetricFamily:
    full = (PREFIX + name + "_total").encode()
    samples = [
        MetricSample(full, b'%b="%b"' % (label.encode(), escape_label(key)), b"%d" % value)
        for key, value in values.items()
    ]
    return MetricFamily(full, "counter", text.encode(), samples)
