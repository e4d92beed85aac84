"""The command line of a llama-server for one model: from the table and the server's own `--help`.

Flags change over time, and a server exits at once on an unknown one. Flags that a server does not have are
left out, or replaced by its own form. But a setting without which the model would give other results (an
adapter, a projector, a template) is refused.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from appliance.models.table.catalogue import LoraAdapter, Model
from appliance.models.table.entries import System
from appliance.models.table.extra_args import flag_name, is_flag
from appliance.models.table.gguf import GgufHeader

MIN_SLOT_TOKENS = 2048  # of context: there are fewer slots if each would have less
ENGINE_CONCURRENCY = 10  # requests at a time of an engine with a command; it may queue some itself
Kind = Literal["text", "embedding", "reranking"]
_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")
_ENTRY = re.compile(r"\n(?=[ ]{0,12}--?[A-Za-z])")  # where the text of the next flag begins


class InvalidCommand(ValueError):
    """The table needs what this llama-server does not support. The message names each key and a remedy."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Which flags a llama-server has.

    Attributes:
        fa_takes_value: -fa needs on, off or auto; in older servers it is a switch.
        lora_is_list: --lora takes all adapters at once, separated by commas, and of several --lora only the
            last counts; in older servers it is given once for each. Likewise --lora-scaled: FILE:SCALE,… or
            FILE SCALE.
        load_modes: The words of --load-mode; older servers have --mlock and --no-mmap.
        spec_types: The words of --spec-type.
    """

    names: frozenset[str]
    fa_takes_value: bool
    lora_is_list: bool = False
    load_modes: frozenset[str] = frozenset()
    spec_types: frozenset[str] = frozenset()

    @classmethod
    def of_help(cls, text: str) -> "Flags":
        """Parse the text of `llama-server --help`."""
        line = next((line for line in text.splitlines() if re.match(r"\s*-fa\b", line)), "")
        entries = _ENTRY.split("\n" + text)
        removed = {
            name
            for entry in entries
            if "argument has been removed" in entry
            for name in _FLAG.findall(entry.partition("the argument")[0])
        }
        lora = next((entry for entry in entries if re.match(r"\s*--lora\s", entry)), "")
        modes = next((entry for entry in entries if "--load-mode " in entry.partition("\n")[0]), "")
        types = re.search(r"--spec-type\s+([\w,-]+)", text)
        return cls(
            frozenset(_FLAG.findall(text)) - removed,
            bool(re.search(r"on\s*\|\s*off|\{on,off|\[on", line)),
            "comma-separated" in lora,
            frozenset(re.findall(r"- ([\w+]+):", modes)),
            frozenset(types[1].split(",")) if types else frozenset(),
        )


def slot_count(model: Model, system: System) -> int:
    """Return how many requests each server of a model gets at a time.

    1. an engine with a command    → `max_concurrency`, else ENGINE_CONCURRENCY
    2. a llama-server              → its slots: as the table says, but with MIN_SLOT_TOKENS each, and not more
                                     than `max_concurrency`
    """
    if model.engine is not None:  # 1
        return model.max_concurrency or ENGINE_CONCURRENCY
    wanted = model.params.parallel_override or system.parallel_requests  # 2
    wanted = min(wanted, model.max_concurrency or wanted)
    return max(1, min(wanted, model.params.n_ctx // MIN_SLOT_TOKENS))


def context_of(model: Model) -> int:
    """Return the tokens of context of a model; with a command those of one request, 0 = unknown."""
    return model.params.n_ctx if model.engine is None else model.engine.context_tokens


def model_kind(model: Model, header: GgufHeader | None) -> Kind:
    """Return what a model is for: as the table says, else as its file says."""
    if model.reranking or (header is not None and header.is_reranker and not model.params.embedding):
        return "reranking"
    return "embedding" if model.params.embedding or (header is not None and header.is_embedding) else "text"


def request_context_tokens(model: Model, header: GgufHeader | None, slots: int) -> int:
    """Return the context of one request.

    1. llama-server divides a model's context among its slots
    2. none gets more than the model was trained with, whatever `n_ctx` says (seen with build 11669)
    3. a text for an embedding or a score is read as one batch
    4. of an engine with a command the operator says it; 0 = not known

    Args:
        model: As it is run.
        header: Of its file; None = not read.
        slots: Of one llama-server.
    """
    if model.engine is not None:  # 4
        return model.engine.context_tokens
    tokens = model.params.n_ctx // max(1, slots)  # 1
    if header is not None and header.context_tokens:
        tokens = min(tokens, header.context_tokens)  # 2
    if model.params.batch_override and model_kind(model, header) != "text":
        tokens = min(tokens, model.params.batch_override)  # 3
    return tokens


def build_command(
    program: str,
    model: Model,
    system: System,
    flags: Flags,
    *,
    port: int,
    host: str = "127.0.0.1",
    header: GgufHeader | None = None,
) -> list[str]:
    """Build the command line of a server.

    Args:
        program: The llama-server.
        model: What it runs.
        system: How models are run.
        flags: Which flags it has.
        port: Where it listens.
        host: Where it listens.
        header: Of the model's file, None = not read.

    Raises:
        InvalidCommand: The table needs for this model what this server does not support.
    """
    words = _CommandLine(
        flags,
        [program, "--model", str(model.path), "--alias", model.alias, "--host", host, "--port", str(port)],
    )
    _add_sizes(words, model, system, header)
    _add_behaviour(words, model, header)
    _add_memory(words, system)
    words.add_lora(model.lora)
    _add_draft(words, model)
    if model.mmproj_path is not None:
        words.demand("mmproj_path", ["--mmproj"], str(model.mmproj_path))
    words.offer("--cache-type-k", model.params.type_k)
    words.offer("--cache-type-v", model.params.type_v)
    if flags.fa_takes_value or system.flash_attention == "on":
        words.offer("-fa", *([system.flash_attention] if flags.fa_takes_value else []))
    words.add_extra(model.extra_args)
    return words.build()


def unknown_flags(arguments: tuple[str, ...], flags: Flags) -> dict[int, tuple[str, str]]:
    """Return the flags that a llama-server does not have.

    Args:
        arguments: Of `extra_args`.
        flags: Which flags it has.

    Returns:
        (its name; the flag that may be meant, "" = none), by the position of the argument.
    """
    unknown = {}
    for at, word in enumerate(arguments):
        if is_flag(word) and (name := flag_name(word)) not in flags.names:
            near = difflib.get_close_matches(name, flags.names, n=1, cutoff=0.75)
            unknown[at] = name, near[0] if near else ""
    return unknown


def is_lockable(flags: Flags) -> bool:
    """Whether this llama-server can keep a model from being swapped out (`system.use_mlock`)."""
    return bool({"--mlock"} & flags.names or {"mlock", "mmap+mlock"} & flags.load_modes)


class _CommandLine:
    """Collects the words of a command line, and the keys that this server does not support."""

    def __init__(self, flags: Flags, words: list[str]) -> None:
        self.flags = flags
        self._words = words
        self._problems: list[str] = []

    def offer(self, name: str, *values: str) -> None:
        """Add a flag, if the server has it."""
        if name in self.flags.names:
            self._words += [name, *values]

    def demand(self, key: str, names: list[str], *values: str) -> None:
        """Add a flag by its first name that the server has; `key`: where the table has it."""
        known = next((name for name in names if name in self.flags.names), None)
        if known is None:
            self._problems.append(
                f"`{key}` needs {' or '.join(names)}, which this llama-server does not have: install a "
                "newer one, or remove the key from the table"
            )
        else:
            self._words += [known, *values]

    def add_extra(self, arguments: tuple[str, ...]) -> None:
        """Add the further arguments of the table; a flag that the server does not have is a problem."""
        for name, near in unknown_flags(arguments, self.flags).values():
            hint = f"did you mean {near}? Else" if near else "install a newer one, or"
            self._problems.append(
                f"`extra_args` has {name}, which this llama-server does not have: {hint} remove it from "
                "the table"
            )
        self._words += arguments

    def add_lora(self, adapters: tuple[LoraAdapter, ...]) -> None:
        """Add all adapters by one flag: requests name them by their order."""
        is_scaled = any(one.scale != 1 for one in adapters)
        name = "--lora-scaled" if is_scaled else "--lora"
        if self.flags.lora_is_list and adapters:
            unusable = next(
                (
                    str(one.path)
                    for one in adapters
                    if "," in str(one.path) or (is_scaled and ":" in str(one.path))
                ),
                "",
            )
            if unusable:
                self._problems.append(
                    "`lora`: for llama-server a path must not have a comma, nor a colon beside a scale: "
                    f"rename {unusable}"
                )
            self.demand(
                "lora",
                [name],
                ",".join(f"{one.path}:{one.scale:g}" if is_scaled else str(one.path) for one in adapters),
            )
            return
        for one in adapters:
            self.demand(
                "lora", [name], *([str(one.path), f"{one.scale:g}"] if is_scaled else [str(one.path)])
            )

    def build(self) -> list[str]:
        """Return all words; raise InvalidCommand if a key is not supported."""
        if self._problems:
            raise InvalidCommand("; ".join(dict.fromkeys(self._problems)))
        return self._words


def _add_sizes(words: _CommandLine, model: Model, system: System, header: GgufHeader | None) -> None:
    params, slots = model.params, slot_count(model, system)
    batch = params.batch_override or params.n_batch
    if model_kind(model, header) != "text" and not params.batch_override:
        # Such models read a text in one piece, and refuse one that is longer than a batch.
        whole = params.n_ctx // slots
        batch = max(batch, min(whole, header.context_tokens or whole) if header else whole)
        words.offer("--ubatch-size", str(batch))
    for name, value in {
        "--n-gpu-layers": params.n_gpu_layers,
        "--ctx-size": params.n_ctx,
        "--batch-size": batch,
        "--parallel": slots,
        "--threads": system.cpu_threads,
    }.items():
        words.offer(name, str(value))
    words.offer("--metrics")
    words.offer("--slots")


def _add_behaviour(words: _CommandLine, model: Model, header: GgufHeader | None) -> None:
    params, kind = model.params, model_kind(model, header)
    if kind == "text":
        words.offer("--jinja")
    if header is None or not header.number("attention.sliding_window"):
        words.offer("--no-context-shift")
    if params.rope_freq_base is not None:
        words.demand("params.rope_freq_base", ["--rope-freq-base"], f"{params.rope_freq_base:g}")
    if params.chat_template is not None:
        words.demand("params.chat_template", ["--chat-template"], params.chat_template)
    # --reranking without --embedding: newer servers imply it; in older ones it would switch reranking off.
    if model.reranking or (kind == "reranking" and {"--reranking", "--rerank"} & words.flags.names):
        words.demand("reranking", ["--reranking", "--rerank"])
    elif params.embedding:
        words.demand("params.embedding", ["--embedding", "--embeddings"])
    elif kind != "text":
        words.offer("--embedding")
    if model.pooling is not None:
        words.demand("pooling", ["--pooling"], model.pooling)


def _add_memory(words: _CommandLine, system: System) -> None:
    modes = words.flags.load_modes
    if not modes:
        if not system.use_mmap:
            words.offer("--no-mmap")
        if system.use_mlock:
            words.offer("--mlock")
        return
    wanted = {
        (True, False): [],
        (False, False): ["none"],
        (True, True): ["mmap+mlock", "mlock"],
        (False, True): ["mlock"],
    }
    mode = next((mode for mode in wanted[system.use_mmap, system.use_mlock] if mode in modes), None)
    if mode is not None:
        words.offer("--load-mode", mode)


def _add_draft(words: _CommandLine, model: Model) -> None:
    if model.draft_model_path is None:
        return
    words.demand("draft_model_path", ["--model-draft", "-md"], str(model.draft_model_path))
    layers = next((name for name in ("--n-gpu-layers-draft", "-ngld") if name in words.flags.names), "")
    words.offer(layers, str(model.params.n_gpu_layers))
    if "draft-simple" in words.flags.spec_types:
        words.offer("--spec-type", "draft-simple")
