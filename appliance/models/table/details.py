"""Facts about a model from its file's header, in no dialect. Pure: library.py reads the files.

Source: the GGUF specification, keys `general.*`, `tokenizer.*` and the architecture's own; the rules for
capabilities are Ollama's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.models.table.entries import Params
from appliance.models.table.gguf import GgufHeader, ParameterCount

PROJECTOR = "clip"  # the architecture of a file that turns pictures into what a chat model reads
TEMPLATE = "tokenizer.chat_template"
_FILLS_GAPS = (
    ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"),
    ("prefix_token_id", "suffix_token_id", "middle_token_id"),
)
_TOOLS = re.compile(r"\btools\b")
_THINKS = re.compile(r"</?think(?:ing)?>|\b(?:enable_thinking|reasoning_content)\b")
_LABEL = re.compile(r"(?:(\d{1,4})x)?(\d{1,6}(?:\.\d{1,6})?)([KMBT])\b", re.IGNORECASE)
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """One model's facts. Unknown numbers are 0, unknown texts "".

    Attributes:
        size_bytes: Of all its parts.
        modified_s: Seconds since 1970.
        template: The chat template in use, a Jinja text (or the name of one that llama-server has built in).
        capabilities: Of completion, tools, thinking, insert, embedding, vision.
        info: Every key of the header. A list is None here, since it may be a vocabulary (see
            `ModelLibrary.lists`).
        digest: SHA-256 of the file's bytes, 64 hexadecimal digits; "" = not known yet.
    """

    alias: str
    size_bytes: int
    modified_s: float
    architecture: str
    parameters: int
    quantization: str
    context_tokens: int
    embedding_length: int
    template: str
    license: str
    capabilities: tuple[str, ...]
    info: Mapping[str, Any]
    digest: str = ""
    format: str = "gguf"

    @property
    def families(self) -> tuple[str, ...]:
        """The architecture, as a list."""
        return (self.architecture,) if self.architecture else ()

    @property
    def parameter_label(self) -> str:
        """How many parameters it has, for people: 7.6B; "" = not known."""
        return label_of(self.parameters) if self.parameters else ""


def gather_details(
    alias: str,
    header: GgufHeader,
    params: Params,
    *,
    size_bytes: int,
    modified_s: float,
    counted: int = 0,
) -> ModelDetails:
    """Gather a model's facts.

    Args:
        alias: The model's name.
        header: Of its file.
        params: How it is run.
        size_bytes: Of all its parts.
        modified_s: Seconds since 1970.
        counted: The parameters in its tensors, 0 = they could not be counted.
    """
    template = template_of(header, params)
    parameters = parameters_of(header, counted)
    info = {
        key: None if isinstance(value, (list, ParameterCount)) else value
        for key, value in header.values.items()
    }
    if parameters:
        info["general.parameter_count"] = parameters
    found = header.values.get("general.license")
    return ModelDetails(
        alias,
        size_bytes,
        modified_s,
        header.architecture,
        parameters,
        header.quantization,
        header.context_tokens,
        header.number("embedding_length"),
        template,
        found if isinstance(found, str) else "",
        capabilities_of(header, params, template),
        info,
    )


def template_of(header: GgufHeader, params: Params) -> str:
    """Return the chat template: the table's, else the file's."""
    found = params.chat_template or header.values.get(TEMPLATE)
    return found if isinstance(found, str) else ""


def parameters_of(header: GgufHeader, counted: int) -> int:
    """Return the number of parameters: as the file says, as its tensors have, or by its size label."""
    said = header.values.get("general.parameter_count")
    if isinstance(said, int) and said > 0:
        return said
    label = header.values.get("general.size_label")
    return counted or (number_of(label) if isinstance(label, str) else 0)


def capabilities_of(header: GgufHeader, params: Params, template: str) -> tuple[str, ...]:
    """Say what a model can do.

    1. a projector                                          vision, and nothing by itself
    2. it pools, or is run for embeddings                   embedding
    3. else                                                 completion, and by its template tools and thinking
    4. it has tokens that mark the gap in a text            insert
    """
    if header.architecture == PROJECTOR or header.values.get("general.type") == "mmproj":  # 1
        return ("vision",)
    if header.is_embedding or params.embedding:  # 2
        return ("embedding",)
    fills_gaps = any(
        all(f"tokenizer.ggml.{name}" in header.values for name in names) for names in _FILLS_GAPS
    )
    found = (
        ("completion", True),  # 3
        ("tools", _TOOLS.search(template)),
        ("thinking", _THINKS.search(template)),
        ("insert", fills_gaps),  # 4
    )
    return tuple(name for name, has in found if has)


def label_of(parameters: int) -> str:
    """Write a number of parameters for people: 7.6B, 135M, 1.2M, 450K."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            number = parameters / size
            is_whole = number >= 100 or f"{number:.1f}".endswith(".0")
            return f"{number:.0f}{unit}" if is_whole else f"{number:.1f}{unit}"
    return str(parameters)


def number_of(label: str) -> int:
    """Parse a size label, `7.6B` or `8x7B`; 0 = it is none."""
    found = _LABEL.match(label)
    if found is None:
        return 0
    times, number, unit = found.groups()
    return round(int(times or 1) * float(number) * _UNITS[unit.upper()])
