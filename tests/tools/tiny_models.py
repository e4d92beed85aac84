"""Tiny models that real engines load in a tenth of a second and answer with what a test knows beforehand.

    python tests/tools/tiny_models.py FOLDER

    tiny-chat.gguf     any chat gets REPLY, at temperatures up to 1; a JSON schema or a demanded tool call what fits it   3.4 MB
    tiny-lora.gguf     an adapter for it: at scale 1 any chat gets LORA_REPLY                                           8 kB
    tiny-embed.gguf    BERT that gives embeddings of 64 numbers, nearer for texts that are more alike                  0.3 MB
    tiny-rerank.gguf   the same with a score for a pair of texts, of no meaning                                        0.3 MB
    tiny-hf/, tiny-hf-lora/   chat model and adapter once more, as vLLM reads them

The chat model is a table of which token follows which, in the form of a transformer. Each token has an axis of its own in the residual
stream, and the output layer holds the table; one more axis is the same for all tokens, for what is likely after any of them. Between the
two lie real layers with weak random weights: attention, cache and sampling work as in a big model, and hardly change the outcome.
The same source gives the same bytes.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gguf
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

# Of these no word may stand twice: each knows its one successor. The two share their ends.
REPLY = "Every question gets this one answer because nobody has taught such a small model anything else."
LORA_REPLY = "An adapter speaks because nobody has taught such a small model anything else."

START, END, NEVER = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"

CONTEXT = 8192  # tokens
WIDTH, HEADS, INNER, LAYERS = 384, 6, 128, 2
EVERYWHERE = WIDTH - 1  # the axis that all tokens share
SIZE = (WIDTH / 2) ** 0.5  # of a token's axis, and of the shared one, after normalisation

# Conversations in ChatML, tools in the way of the Hermes and Qwen families.
TEMPLATE = r"""
{%- if tools -%}
{{- '<|im_start|>system\nThese functions can be called:\n' -}}
{%- for tool in tools -%}{{- (tool | tojson) + '\n' -}}{%- endfor -%}
{{- 'A call is written\n<tool_call>\n{"name": name, "arguments": object}\n</tool_call><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] -%}{{- message['content'] -}}{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{{- '\n<tool_call>\n{"name": "' + call['function']['name'] + '", "arguments": ' -}}
{{- call['function']['arguments'] | tojson -}}{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()


# ---- tokens: bytes, the replies' words, and marks


def pieces(text: str) -> list[str]:
    """'One two.' as the tokens 'One', ' two' and '.'."""
    return re.findall(r" ?\w+|.", text)


REPLY_TOKENS = len(pieces(REPLY)) + 1  # what an engine counts: with the end token


@cache
def letters() -> list[str]:
    """The visible letter that stands for each of the 256 bytes, as in every byte-level BPE since GPT-2."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 0x100 + hidden.index(byte)) for byte in range(256)]


def spelled(text: str) -> str:
    return "".join(letters()[byte] for byte in text.encode())


@cache
def vocabulary() -> tuple[dict[str, int], list[str]]:
    """All tokens with their numbers, and the merges that lead from bytes to the replies' words."""
    tokens, merges = dict.fromkeys(letters()), []
    for word in map(spelled, [*pieces(REPLY), *pieces(LORA_REPLY), "\n\n"]):
        for length in range(2, len(word) + 1):
            if word[:length] not in tokens:
                tokens[word[:length]] = None
                merges.append(f"{word[: length - 1]} {word[length - 1]}")
    tokens.update(dict.fromkeys([CALL, CALL_END, START, END, NEVER]))
    assert len(tokens) < WIDTH
    return {token: number for number, token in enumerate(tokens)}, merges


def number(text: str) -> int:
    """The number of the token for a text."""
    tokens, _ = vocabulary()
    return tokens[text] if text in (CALL, CALL_END, START, END, NEVER) else tokens[spelled(text)]


# ---- the chat model


def successors() -> dict[tuple[str, str], float]:
    """(token, the next one): its logit. A prompt ends with a line feed."""
    said = ["\n", *pieces(REPLY), END]
    adapted = [NEVER, *pieces(LORA_REPLY)]  # begins after a token that no chat holds
    last = pieces(REPLY)[-1]
    return dict.fromkeys([*pairwise(said), *pairwise(adapted)], 60.0) | {
        # Where the end is forbidden, a call begins. Line feeds stand before it, for JSON strings forbid those, but not the mark of
        # a call; in a string the quotation mark follows.
        (last, END): 90.0,
        (last, "\n\n"): 62.0,
        (last, '"'): 18.0,
        ("\n\n", CALL): 60.0,
        (CALL, "\n"): 70.0,
        (CALL_END, END): 60.0,
    }


# The logits after any token. Where the reply may not be said, brackets close as soon as they can.
ANYWHERE = {
    pieces(REPLY)[0]: 26.0,
    '"': 17.0,
    "}": 20.0,
    "]": 19.5,
    CALL_END: 10.0,
    END: 8.0,
    ",": 4.0,
    "\n\n": -12.0,
    "\n": -10.0,
    "\t": -10.0,
    "\r": -10.0,
    " ": -8.0,
    START: -20.0,
    NEVER: -20.0,
}


def chat_weights() -> "dict[str, Array]":
    """All weights, by their names at Hugging Face; matrices as (outputs, inputs)."""
    import numpy as np

    random = np.random.default_rng(7)

    def weak(outputs: int, inputs: int) -> "Array":
        return (random.standard_normal((outputs, inputs)) * 0.005).astype(np.float32)

    tokens = len(vocabulary()[0])
    embedding = np.eye(tokens, WIDTH, dtype=np.float32)
    embedding[:, EVERYWHERE] = 1
    table = np.zeros((tokens, WIDTH), dtype=np.float32)
    for (here, following), logit in successors().items():
        table[number(following), number(here)] = logit / SIZE
    for token, logit in ANYWHERE.items():
        table[number(token), EVERYWHERE] = logit / SIZE
    weights = {
        "model.embed_tokens": embedding,
        "model.norm": np.ones(WIDTH, dtype=np.float32),
        "lm_head": table,
    }
    for layer in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (WIDTH, WIDTH),
            "self_attn.v_proj": (WIDTH, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
        }.items():
            weights[f"model.layers.{layer}.{name}"] = weak(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}"] = np.ones(WIDTH, dtype=np.float32)
    return weights


def adapter_weights() -> "dict[str, tuple[Array, Array]]":
    """The adapter's pairs (A, B) by module: one neuron of the last layer that notices the line feed and makes NEVER of it."""
    import numpy as np

    notice = np.zeros((1, WIDTH), dtype=np.float32)
    notice[0, number("\n")] = 4 / SIZE  # gate and input are both 4 there, and 0 elsewhere
    neuron = np.eye(1, INNER, dtype=np.float32)
    turn = np.zeros((WIDTH, 1), dtype=np.float32)
    turn[number("\n")], turn[number(NEVER)] = -1, 1
    activity = 4 * 4 / (1 + np.exp(-4.0))  # SiLU(4) times 4
    module = f"model.layers.{LAYERS - 1}.mlp."
    return {
        module + "gate_proj": (notice, neuron.T.copy()),
        module + "up_proj": (notice, neuron.T.copy()),
        module + "down_proj": (neuron, (turn / activity).astype(np.float32)),
    }


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    return f"blk.{layer[1]}.{GGUF_NAMES[layer[2]]}.weight" if layer else f"{GGUF_NAMES[name]}.weight"


def save(writer: "gguf.GGUFWriter") -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_chat(path: Path) -> None:
    import gguf
    import numpy as np

    tokens, merges = vocabulary()
    kinds = {CALL: gguf.TokenType.USER_DEFINED, CALL_END: gguf.TokenType.USER_DEFINED}
    kinds |= dict.fromkeys((START, END, NEVER), gguf.TokenType.CONTROL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-chat")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(number(START))
    writer.add_eos_token_id(number(END))
    writer.add_pad_token_id(number(NEVER))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in chat_weights().items():
        writer.add_tensor(gguf_name(name), values if values.ndim == 1 else values.astype(np.float16))
    save(writer)


def make_adapter(path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name("tiny-lora")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)
    for module, (a, b) in adapter_weights().items():
        writer.add_tensor(gguf_name(module) + ".lora_a", a)
        writer.add_tensor(gguf_name(module) + ".lora_b", b)
    save(writer)


# ---- the same two for vLLM


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_safetensors(path: Path, tensors: "dict[str, Array]") -> None:
    """The length of the header in eight bytes, the header in JSON, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {
            "dtype": {2: "F16", 4: "F32"}[values.itemsize],
            "shape": values.shape,
            "data_offsets": [begin, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(
        len(head).to_bytes(8, "little") + head + b"".join(values.tobytes() for values in tensors.values())
    )


def make_hf(folder: Path) -> None:
    import numpy as np

    folder.mkdir()
    tokens, merges = vocabulary()
    marks = {"bos_token_id": number(START), "eos_token_id": number(END), "pad_token_id": number(NEVER)}
    write_safetensors(
        folder / "model.safetensors",
        {name + ".weight": values.astype(np.float16) for name, values in chat_weights().items()},
    )
    write_json(folder / "generation_config.json", marks)
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "hidden_act": "silu",
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": WIDTH // HEADS,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": len(tokens),
            "tie_word_embeddings": False,
            **marks,
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "bos_token": START,
            "eos_token": END,
            "pad_token": NEVER,
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "normalizer": None,
            "post_processor": None,
            "added_tokens": [
                {"id": number(mark), "content": mark, "special": mark not in (CALL, CALL_END), **plain}
                for mark in (CALL, CALL_END, START, END, NEVER)
            ],
            "pre_tokenizer": by_bytes,
            "decoder": by_bytes,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": tokens,
                "merges": merges,
            },
        },
    )


def make_hf_adapter(folder: Path) -> None:
    folder.mkdir()
    tensors: dict[str, Array] = {}
    for module, (a, b) in adapter_weights().items():
        tensors |= {
            f"base_model.model.{module}.lora_A.weight": a,
            f"base_model.model.{module}.lora_B.weight": b,
        }
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny-hf",
            "r": 1,
            "lora_alpha": 1,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": ["gate_proj", "up_proj", "down_proj"],
        },
    )


# ---- BERT, with random weights


def make_bert(path: Path, *, score: bool) -> None:
    """Each sign is a token; pooled by their mean, or with a head that gives a score."""
    import gguf
    import numpy as np

    width, inner, layers, context = 64, 128, 2, 512
    signs = [chr(code) for code in range(0x21, 0x7F) if not chr(code).isupper()]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*marks, *("\u2581" + sign for sign in signs), *signs]  # llama.cpp marks where a word begins
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-rerank" if score else "tiny-embed")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_pooling_type(gguf.PoolingType.RANK if score else gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in marks else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_type_count(2)
    for mark, tell in enumerate(
        (
            writer.add_pad_token_id,
            writer.add_unk_token_id,
            writer.add_bos_token_id,
            writer.add_eos_token_id,
            writer.add_mask_token_id,
        )
    ):
        tell(mark)
    writer.add_sep_token_id(marks.index("[SEP]"))
    random = np.random.default_rng(7)

    def matrix(
        name: str,
        outputs: int,
        inputs: int,
        spread: float,
        kind: "type[np.floating[Any]]" = np.float16,
    ) -> None:
        writer.add_tensor(name + ".weight", (random.standard_normal((outputs, inputs)) * spread).astype(kind))

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(name, outputs, inputs, 0.3)
        writer.add_tensor(name + ".bias", np.zeros(outputs, dtype=np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(name + ".weight", np.ones(width, dtype=np.float32))
        writer.add_tensor(name + ".bias", np.zeros(width, dtype=np.float32))

    matrix("token_embd", len(tokens), width, 1.0)
    matrix("token_types", 2, width, 0.1, np.float32)  # these two are added as they are, so in full precision
    matrix("position_embd", context, width, 0.1, np.float32)
    norm("token_embd_norm")
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{name}", width, width)
        norm(f"blk.{layer}.attn_output_norm")
        linear(f"blk.{layer}.ffn_up", inner, width)
        linear(f"blk.{layer}.ffn_down", width, inner)
        norm(f"blk.{layer}.layer_output_norm")
    if score:
        linear("cls", width, width)
        linear("cls.output", 1, width)
    save(writer)


# ---- all of them in a folder


MAKERS: dict[str, Callable[[Path], None]] = {
    "tiny-chat.gguf": make_chat,
    "tiny-lora.gguf": make_adapter,
    "tiny-embed.gguf": lambda path: make_bert(path, score=False),
    "tiny-rerank.gguf": lambda path: make_bert(path, score=True),
    "tiny-hf": make_hf,
    "tiny-hf-lora": make_hf_adapter,
}


def cached_folder() -> Path:
    """Where tests share them: one folder for each version of this file."""
    home = (
        os.environ.get("APPLIANCE_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance-tests"
    )
    return Path(home) / f"tiny-models-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"


def ensure(folder: Path) -> Path:
    """Make what is missing in `folder`; several processes may do so at once. Gives the folder. Raises OSError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, make in MAKERS.items():
            if (folder / name).exists():
                continue
            new = folder / f".new-{name}"
            if new.is_dir():
                shutil.rmtree(new)
            make(new)
            new.replace(folder / name)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    print(ensure(Path(sys.argv[1])))
