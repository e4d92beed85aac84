"""The memory that a model will take, from its header and how it is to be run; bytes throughout.

    weights    the file, as it is mapped or read into the GPU
    cache      keys and values of every layer for every token of context, in the types of the table
    buffers    what a batch needs while it is computed: above all its scores for the whole vocabulary
    extras     what runs beside it: a draft model with its own cache, the projector for images, LoRA adapters

A rule of thumb (file × multiplier + 50 MB per 1,024 tokens + 150 MB, see docs/compatibility.md) is used if a
header does not say enough.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from appliance.models.table.catalogue import Model
from appliance.models.table.entries import System
from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_header
from appliance.models.table.gguf_files import gguf_size_bytes

MIB = 1 << 20
# Bytes of one element. The quantised ones hold blocks of 32 with a scale (and a minimum).
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q4_0": 18 / 32,
    "q4_1": 20 / 32,
    "iq4_nl": 18 / 32,
    "q5_0": 22 / 32,
    "q5_1": 24 / 32,
}
BASE_BYTES = 150 * MIB
MICRO_BATCH = 512  # tokens that llama.cpp computes at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes; `is_rough`: by the rule of thumb."""

    weights: int
    cache: int
    buffers: int
    is_rough: bool
    extras: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.buffers + self.extras


def estimate_memory(model: Model, system: System, header: GgufHeader | None) -> Estimate:
    """Estimate what a model of the table takes, with all that runs beside it.

    Args:
        model: Whose files' sizes are looked up (blocks).
        system: How models are run.
        header: Of the model's file (its first part), None = it could not be read.
    """
    assert model.path is not None
    params, size = model.params, gguf_size_bytes(model.path)
    known = replace(header, size_bytes=max(size, header.size_bytes)) if header else GgufHeader(0, 0, {}, size)
    extras = _draft_bytes(model, system) + round(
        gguf_size_bytes(model.mmproj_path) * system.vram_multiplier if model.mmproj_path else 0
    )
    extras += sum(gguf_size_bytes(one.path) for one in model.lora)
    floor = max(0, system.min_vram_required * MIB - extras)
    made = estimate(
        known,
        context_tokens=params.n_ctx,
        type_k=params.type_k,
        type_v=params.type_v,
        multiplier=system.vram_multiplier,
        floor_bytes=floor,
    )
    return replace(made, extras=extras)


def _draft_bytes(model: Model, system: System) -> int:
    """Return the memory of the draft model, with a cache for the same context, in the same process."""
    path: Path | None = model.draft_model_path
    if path is None:
        return 0
    try:
        header = read_header(path)
    except (OSError, InvalidGguf):
        return round(gguf_size_bytes(path) * system.vram_multiplier)
    made = estimate(
        replace(header, size_bytes=gguf_size_bytes(path)),
        context_tokens=model.params.n_ctx,
        multiplier=system.vram_multiplier,
    )
    return made.total - BASE_BYTES


def estimate(
    header: GgufHeader,
    *,
    context_tokens: int,
    type_k: str = "f16",
    type_v: str = "f16",
    multiplier: float = 1.1,
    floor_bytes: int = 0,
) -> Estimate:
    """Estimate what a model takes.

    Args:
        header: Of its file.
        context_tokens: Of all slots together.
        type_k: Of the keys in the cache, one of CACHE_TYPES.
        type_v: Of the values in the cache.
        multiplier: Of the rule of thumb, 1 or more.
        floor_bytes: The lowest estimate.
    """
    heads, kv_heads = header.per_layer("attention.head_count"), header.per_layer("attention.head_count_kv")
    kv_heads = kv_heads or heads
    width = header.number("embedding_length")
    if not kv_heads or not heads or not width:
        return _rough(header, context_tokens, multiplier, floor_bytes)
    head = width // max(1, max(heads))
    key, value = (
        header.number("attention.key_length") or head,
        header.number("attention.value_length") or head,
    )
    per_token = sum(kv_heads) * (key * CACHE_TYPES[type_k] + value * CACHE_TYPES[type_v])
    cache = round(per_token * context_tokens)
    buffers = BASE_BYTES + min(MICRO_BATCH, context_tokens) * (header.vocabulary + 8 * width) * 4
    short = max(0, floor_bytes - header.size_bytes - cache - buffers)
    return Estimate(header.size_bytes, cache, buffers + short, False)


def _rough(header: GgufHeader, context_tokens: int, multiplier: float, floor_bytes: int) -> Estimate:
    weights, cache = round(header.size_bytes * multiplier), round(context_tokens / 1024 * 50 * MIB)
    return Estimate(weights, cache, BASE_BYTES + max(0, floor_bytes - weights - cache - BASE_BYTES), True)
