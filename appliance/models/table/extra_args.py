"""What a table may add to the command line and the environment of a llama-server. Pure.

Refused: what decides where the server listens, who may call it, which model it runs and where it writes; what
makes it exit at once; and what has a key of its own in the table, by which memory and slots are planned.

Source: `llama-server --help`; arguments are read with `_` for `-`, too.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

MAX_ARGS, MAX_CHARACTERS, MAX_VARIABLES = 200, 10_000, 100
_FLAG = re.compile(r"--?[a-zA-Z][\w-]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LISTENS = "the appliance decides where its llama-servers listen, and who may call them"
_MODEL = "the model is named by `model_path` and the keys beside it"
_LOGS = "the appliance keeps the logs (MODEL_LOG_DIR)"
_EXITS = "the server would print something and exit"
_REFUSED = {
    **dict.fromkeys(
        ["--host", "--port", "--reuse-port", "--api-key", "--api-key-file", "--api-prefix"], _LISTENS
    ),
    **dict.fromkeys(
        ["--ssl-key-file", "--ssl-cert-file", "--path", "--cors-origins", "--cors-credentials"], _LISTENS
    ),
    **dict.fromkeys(["-a", "--alias", "--tags"], "clients know the model by its name in the table"),
    **dict.fromkeys(["-m", "--model", "-mu", "--model-url", "-dr", "--docker-repo"], _MODEL),
    **dict.fromkeys(["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"], _MODEL),
    **dict.fromkeys(["-mmu", "--mmproj-url", "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"], _MODEL),
    **dict.fromkeys(["--models-dir", "--models-preset", "--models-max", "--models-autoload"], _MODEL),
    **dict.fromkeys(
        ["-hfv", "-hfrv", "--hf-repo-v", "-hffv", "--hf-file-v", "-mv", "--model-vocoder"], _MODEL
    ),
    **dict.fromkeys(["--log-file", "--log-disable", "--log-prompts-dir"], _LOGS),
    **dict.fromkeys(
        ["-h", "--help", "--usage", "--version", "-cl", "--cache-list", "--list-devices", "--license"], _EXITS
    ),
    "--completion-bash": _EXITS,
    "--no-slots": "the appliance reads /slots",
    "--sleep-idle-seconds": "the appliance unloads idle models; use `idle_timeout_sec`",
    **dict.fromkeys(
        ["-ag", "--agent", "--tools", "--tools-runtime", "--ui-mcp-proxy", "--webui-mcp-proxy"],
        "it would let clients run programs or call addresses from this machine",
    ),
    **dict.fromkeys(
        ["--mcp-servers-config", "--mcp-servers-json"],
        "it would let clients run programs or call addresses from this machine",
    ),
}
_PRESET = re.compile(r"--[\w.-]+-default|--fim-qwen-[\w.-]+-spec")  # each downloads a model of its own
_KEYS = {  # flags → the key of the table
    **dict.fromkeys(["-c", "--ctx-size"], "params.n_ctx"),
    **dict.fromkeys(["-ngl", "--gpu-layers", "--n-gpu-layers"], "params.n_gpu_layers"),
    **dict.fromkeys(["-b", "--batch-size"], "params.n_batch"),
    **dict.fromkeys(["-np", "--parallel"], "params.parallel_override"),
    **dict.fromkeys(["-ctk", "--cache-type-k"], "params.type_k"),
    **dict.fromkeys(["-ctv", "--cache-type-v"], "params.type_v"),
    **dict.fromkeys(["--embedding", "--embeddings"], "params.embedding"),
    **dict.fromkeys(["--chat-template"], "params.chat_template"),
    **dict.fromkeys(["--rope-freq-base"], "params.rope_freq_base"),
    **dict.fromkeys(["--lora", "--lora-scaled"], "lora"),
    **dict.fromkeys(["-md", "--model-draft", "--spec-draft-model"], "draft_model_path"),
    **dict.fromkeys(["-mm", "--mmproj"], "mmproj_path"),
    **dict.fromkeys(["--rerank", "--reranking"], "reranking"),
    **dict.fromkeys(["--pooling"], "pooling"),
    **dict.fromkeys(["-t", "--threads"], "system.cpu_threads"),
    **dict.fromkeys(["-fa", "--flash-attn"], "system.flash_attention"),
    **dict.fromkeys(["--mlock", "-lm", "--load-mode"], "system.use_mlock"),
    **dict.fromkeys(["--mmap", "--no-mmap"], "system.use_mmap"),
}
_OWN_VARIABLES = {
    **dict.fromkeys(
        ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"],
        "the appliance chooses the GPUs (system.gpu_devices)",
    ),
    "LLAMA_API_KEY": _LISTENS,
}


def is_flag(word: str) -> bool:
    """Whether a word of a command line is a flag, not a value such as -1."""
    return _FLAG.match(word) is not None


def flag_name(word: str) -> str:
    """Return a flag as llama-server's help spells it: without `=value`, `-` for `_`."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def _check_word(word: str) -> str:
    if not is_flag(word):
        if "\0" in word:
            raise ValueError("an argument must not have a zero byte")
        return word
    if any(character.isspace() for character in word):
        raise ValueError("give a flag and its value as two arguments")
    name = flag_name(word)
    reason = _REFUSED.get(name) or (_MODEL if _PRESET.fullmatch(name) else "")
    if reason:
        raise ValueError(f"{name} cannot be given here: {reason}")
    if key := _KEYS.get(name):
        raise ValueError(f"use the key `{key}` instead of {name}")
    return word


def _check_args(words: tuple[str, ...]) -> tuple[str, ...]:
    if words and not is_flag(words[0]):
        raise ValueError("the first argument must be a flag, such as --threads-batch")
    return words


def _as_text(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else value


def _check_variable(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a variable has letters, digits and _, and does not begin with a digit")
    if reason := _OWN_VARIABLES.get(name):
        raise ValueError(f"{name} cannot be given here: {reason}")
    if name.startswith("LLAMA_ARG_"):
        raise ValueError(f"{name} cannot be given here: use `extra_args` for arguments of llama-server")
    return name


def _check_value(value: str) -> str:
    if "\0" in value:
        raise ValueError("the value of a variable must not have a zero byte")
    return value


_Word = Annotated[
    str, Field(max_length=MAX_CHARACTERS), BeforeValidator(_as_text), AfterValidator(_check_word)
]
ExtraArgs = Annotated[tuple[_Word, ...], Field(max_length=MAX_ARGS), AfterValidator(_check_args)]
_Variable = Annotated[str, AfterValidator(_check_variable)]
_Value = Annotated[
    str, Field(max_length=MAX_CHARACTERS), BeforeValidator(_as_text), AfterValidator(_check_value)
]
Environment = Annotated[dict[_Variable, _Value], Field(max_length=MAX_VARIABLES)]
