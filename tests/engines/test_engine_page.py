"""An engine's page by plain names: spellings, kinds, and histograms without a TYPE line."""

import pytest

from appliance.base.metrics.exposition_read import read_page
from appliance.engines.metrics.engine_page import OTHER_KIND, EnginePage
from appliance.engines.metrics.extras import NO_EXTRAS, EngineExtras, compute_kv_usage
from appliance.engines.metrics.normalise import find_kind, normalise


def page_of(text: str, kind: str = "vllm") -> EnginePage:
    return EnginePage(read_page(text.encode()), kind)


@pytest.mark.parametrize("name", ["vllm:x", "vllm_x", "vllm:x_total", "vllm_x_total"])
def test_every_spelling_is_found(name: str) -> None:
    family, reason = page_of(f"{name} 1\n").find(("x",), "counter")
    assert family is not None
    assert (family.name, reason) == (name.encode(), "")


@pytest.mark.parametrize(
    ("on_page", "wanted", "is_found"),
    [
        ("gauge", "gauge", True),
        ("counter", "gauge", True),
        ("gauge", "counter", True),
        ("summary", "gauge", False),
        ("summary", "counter", False),
        ("gauge", "histogram", False),
    ],
)
def test_kinds_that_are_accepted(on_page: str, wanted: str, is_found: bool) -> None:
    family, reason = page_of(f"# TYPE vllm:x {on_page}\nvllm:x 1\n").find(("x",), wanted)
    assert (family is not None, reason) == (is_found, "" if is_found else OTHER_KIND)


def test_the_first_name_on_the_page_counts() -> None:
    page = page_of("vllm:old 1\nvllm:new 2\n")
    assert [page.find(names, "gauge")[0].name for names in (("new", "old"), ("newest", "old"))] == [  # type: ignore[union-attr]
        b"vllm:new",
        b"vllm:old",
    ]
    assert page.find(("newest",), "gauge") == (None, "")
    assert (page.has_any(("newest", "old")), page.has_any(("newest",))) == (True, False)


def test_a_histogram_without_type_line_is_joined() -> None:
    whole = 'vllm:t_bucket{le="+Inf"} 2\nvllm:t_sum 3\nvllm:t_count 2\n'
    family, _ = page_of(whole).find(("t",), "histogram")
    assert family is not None
    assert (family.name, family.kind, len(family.samples)) == (b"vllm:t", "histogram", 3)
    assert page_of(whole.replace("vllm:t_sum 3\n", "")).find(("t",), "histogram") == (None, "")


@pytest.mark.parametrize(
    ("text", "has_worked"),
    [
        ("# TYPE vllm:a counter\nvllm:a 0\n# TYPE vllm:b gauge\nvllm:b 5\n", False),
        ("# TYPE vllm:a counter\nvllm:a 1\n", True),
        ('# TYPE vllm:t histogram\nvllm:t_bucket{le="+Inf"} 0\nvllm:t_sum 1\nvllm:t_count 0\n', False),
        ('# TYPE vllm:t histogram\nvllm:t_bucket{le="+Inf"} 1\nvllm:t_sum 1\nvllm:t_count 1\n', True),
    ],
)
def test_an_engine_has_worked_once_something_was_counted(text: str, has_worked: bool) -> None:
    assert page_of(text).has_worked() is has_worked


@pytest.mark.parametrize(
    ("text", "configured", "kind"),
    [
        ("vllm:a 1\n", "auto", "vllm"),
        ("sglang_a 1\n", "auto", "sglang"),
        ("llamacpp:a 1\n", "auto", "llamacpp"),
        ("python_gc 1\n", "auto", ""),
        ("vllm:a 1\n", "sglang", "sglang"),
        ("", "vllmdisaggregated", "vllm"),
        ("", "llama.cpp", "llamacpp"),
        ("vllm:a 1\n", "openai", ""),
    ],
)
def test_the_kind_is_configured_or_found_on_the_page(text: str, configured: str, kind: str) -> None:
    assert find_kind(read_page(text.encode()), configured) == kind


# ---- derived metrics

LORA = 'vllm:lora_requests_info{{running_lora_adapters="{}"}} {}\n'


@pytest.mark.parametrize(
    ("text", "kind", "extras", "value"),
    [
        (LORA.format("old", 1) + LORA.format("a, b,", 2), "vllm", NO_EXTRAS, b"2"),  # the newest row
        (LORA.format("", 1), "vllm", NO_EXTRAS, b"0"),
        ("sglang:lora_pool_slots_used 3\n", "sglang", EngineExtras(adapters=("a",)), b"3"),
        ("llamacpp:requests_processing 0\n", "llamacpp", EngineExtras(adapters=("a", "b")), b"2"),
        ("llamacpp:requests_processing 0\n", "llamacpp", NO_EXTRAS, None),
    ],
)
def test_adapters_in_use(text: str, kind: str, extras: EngineExtras, value: bytes | None) -> None:
    assert single("engine_lora_running", text, kind, extras) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("llamacpp:prompt_tokens_total 70\nllamacpp:prompt_tokens_cached_total 30\n", b"100"),
        ("llamacpp:prompt_tokens_total 70\n", None),
    ],
)
def test_tokens_that_llama_server_looked_up(text: str, value: bytes | None) -> None:
    assert single("engine_prefix_cache_queries_total", text, "llamacpp", NO_EXTRAS) == value


@pytest.mark.parametrize(("usage", "value"), [(0.25, b"0.25"), (None, None)])
def test_kv_usage_of_the_slots(usage: float | None, value: bytes | None) -> None:
    extras = EngineExtras(kv_usage=usage)
    assert single("engine_kv_cache_usage_ratio", "llamacpp:a 1\n", "llamacpp", extras) == value


def single(name: str, text: str, kind: str, extras: EngineExtras) -> bytes | None:
    """The value of one of our metrics that has one row; None = it is not there."""
    families = {one.name.decode(): one for one in normalise(read_page(text.encode()), kind, extras).ours}
    return families[name].samples[0].value if name in families else None


SLOT = {"id": 0, "n_ctx": 8192, "is_processing": True, "n_prompt_tokens": 2048}


@pytest.mark.parametrize(
    ("slots", "usage"),
    [
        ([SLOT, SLOT | {"is_processing": False}], 0.125),
        ([SLOT | {"is_processing": False, "n_prompt_tokens": 41}], 0.0),
        ([{k: v for k, v in SLOT.items() if k != "n_prompt_tokens"}], None),
        ([SLOT | {"n_prompt_tokens": 9000}], 1.0),
        ([], None),
        ({"error": {}}, None),
        ([1], None),
        ([{"id": 1, "n_ctx": 5}], None),
        ([SLOT | {"n_ctx": 0}], None),
    ],
)
def test_kv_cache_usage_is_computed_from_the_slots(slots: object, usage: float | None) -> None:
    assert compute_kv_usage(slots) == usage
