"""What a table adds to a model, for old and new llama-servers; and the memory that it takes."""

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.models.table.catalogue import LoraAdapter, Model
from appliance.models.table.command import (
    Flags,
    InvalidCommand,
    build_command,
    is_lockable,
    model_kind,
    request_context_tokens,
)
from appliance.models.table.entries import Params, System
from appliance.models.table.estimate import MIB, estimate_memory
from appliance.models.table.gguf import GgufHeader, read_header

# The lines on which servers differ, as they print them: before they were folded together, and after.
OLD = """usage: ./llama-server [options]

  -m,    --model FNAME            model path
         --mlock                  force system to keep model in RAM rather than swapping or compressing
         --no-mmap                do not memory-map model
         --lora FNAME             path to LoRA adapter (can be repeated to use multiple adapters)
         --lora-scaled FNAME S    path to LoRA adapter with user defined scaling S (can be repeated)
  -md,   --model-draft FNAME      draft model for speculative decoding (default: unused)
  -ngld, --gpu-layers-draft N     number of layers to store in VRAM for the draft model
         --embedding(s)           restrict to only support embedding use case
         --batch-size N --ubatch-size N
"""
NEW = """----- common params -----

-m,    --model FNAME                    model path to load
-lm,   --load-mode MODE                 model loading mode (default: auto)
                                        - auto: mmap, unless a device does not support it
                                        - none: no special loading mode
                                        - mlock: force system to keep model in RAM
                                        - mmap+mlock: mmap + force system to keep model in RAM
--lora FNAME                            path to LoRA adapter (use comma-separated values to load multiple
                                        adapters)
--lora-scaled FNAME:SCALE,...           path to LoRA adapter with user defined scaling (format:
                                        FNAME:SCALE,...)
--spec-draft-ngl, -ngld, --gpu-layers-draft, --n-gpu-layers-draft N
                                        max. number of draft model layers to store in VRAM
--spec-draft-model, -md, --model-draft FNAME
                                        draft model for speculative decoding (default: unused)
--spec-type none,draft-simple,draft-eagle3,ngram-simple
                                        comma-separated list of types of speculative decoding to use
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max
--pooling {none,mean,cls,last,rank}     pooling type for embeddings, use model default if unspecified
-mm,   --mmproj FILE                    path to a multimodal projector file
--embedding, --embeddings               restrict to only support embedding use case
--rerank, --reranking                   enable reranking endpoint on server (default: disabled)
--batch-size N --ubatch-size N
"""
TWO = (LoraAdapter(Path("/l/a.gguf")), LoraAdapter(Path("/l/b.bin")))
SCALED = (LoraAdapter(Path("/l/a.gguf")), LoraAdapter(Path("/l/b.gguf"), 0.5))


def model(params: dict[str, Any] | None = None, **values: Any) -> Model:
    return Model("a", Path("/m/a.gguf"), Params(**params or {}), "table", **values)


def words(text: str, made: Model, system: System | None = None, **more: Any) -> str:
    return " ".join(build_command("l", made, system or System(), Flags.of_help(text), port=1, **more)) + " "


@pytest.mark.parametrize(
    ("made", "old", "new"),
    [
        (model(lora=TWO), "--lora /l/a.gguf --lora /l/b.bin ", "--lora /l/a.gguf,/l/b.bin "),
        (
            model(lora=SCALED),
            "--lora-scaled /l/a.gguf 1 --lora-scaled /l/b.gguf 0.5 ",
            "--lora-scaled /l/a.gguf:1,/l/b.gguf:0.5 ",
        ),
        (
            model(draft_model_path=Path("/d.gguf")),
            "--model-draft /d.gguf -ngld 99 ",
            "--model-draft /d.gguf --n-gpu-layers-draft 99 --spec-type draft-simple ",
        ),
        (model(mmproj_path=Path("/p.gguf")), "", "--mmproj /p.gguf "),
        (model(reranking=True), "", "--reranking "),
        (model(pooling="cls"), "", "--pooling cls "),
        (model({"embedding": True}, pooling="last"), "", "--embedding --pooling last "),
    ],
    ids=["adapters", "scaled adapters", "draft", "projector", "reranking", "pooling", "embedding"],
)
def test_key_becomes_the_flag_of_each_server_or_is_refused(made: Model, old: str, new: str) -> None:
    assert new in words(NEW, made)
    if old:
        assert old in words(OLD, made)
    else:
        with pytest.raises(
            InvalidCommand,
            match="which this llama-server does not have: install a newer one, or remove the key",
        ):
            words(OLD, made)


def test_all_unsupported_keys_are_named_at_once() -> None:
    with pytest.raises(
        InvalidCommand,
        match=r"`params.chat_template` needs.*`reranking` needs.*`mmproj_path` needs --mmproj,",
    ):
        words(OLD, model({"chat_template": "chatml"}, reranking=True, mmproj_path=Path("/p")))


@pytest.mark.parametrize(
    "adapters", [(LoraAdapter(Path("/l/a,b.gguf")),), (LoraAdapter(Path("/l/a:b.gguf"), 2.0),)]
)
def test_an_adapter_path_with_separators_is_refused(
    adapters: tuple[LoraAdapter, ...],
) -> None:
    with pytest.raises(InvalidCommand, match="rename /l/a"):
        words(NEW, model(lora=adapters))
    assert str(adapters[0].path) in words(OLD, model(lora=adapters))


def test_a_removed_flag_in_the_help_is_not_used() -> None:
    flags = Flags.of_help(NEW)
    assert not {"--draft", "--draft-n", "--draft-max"} & flags.names
    assert {"--model-draft", "--lora", "--reranking"} <= flags.names
    assert flags.load_modes == {"auto", "none", "mlock", "mmap+mlock"}


@pytest.mark.parametrize(
    ("use_mmap", "use_mlock", "old", "new"),
    [
        (True, False, "", ""),
        (False, False, "--no-mmap", "--load-mode none"),
        (True, True, "--mlock", "--load-mode mmap+mlock"),
        (False, True, "--no-mmap --mlock", "--load-mode mlock"),
    ],
)
def test_memory_is_mapped_and_locked_as_the_table_says(
    use_mmap: bool, use_mlock: bool, old: str, new: str
) -> None:
    for text, wanted in ((OLD, old), (NEW, new)):
        assert (
            words(text, model(), System(use_mmap=use_mmap, use_mlock=use_mlock))
            .partition("--batch-size 256")[2]
            .strip()
            == wanted
        )
    assert is_lockable(Flags.of_help(OLD))
    assert is_lockable(Flags.of_help(NEW))
    assert not is_lockable(Flags.of_help("--model"))


def test_server_listens_on_the_given_address() -> None:
    text = NEW + "--host HOST --port N"
    assert "--host 127.0.0.1 --port 1 " in words(text, model())
    assert "--host /run/a.sock --port 1 " in words(text, model(), host="/run/a.sock")


def bert(pooling: int) -> GgufHeader:
    return GgufHeader(
        3, 0, {"general.architecture": "bert", "bert.pooling_type": pooling, "bert.context_length": 512}, 1
    )


@pytest.mark.parametrize(
    ("made", "header", "kind"),
    [
        (model(), None, "text"),
        (model(), bert(0), "text"),
        (model(), bert(1), "embedding"),
        (model(), bert(4), "reranking"),
        (model({"embedding": True}), bert(4), "embedding"),
        (model(reranking=True), None, "reranking"),
        (model({"embedding": True}), None, "embedding"),
    ],
)
def test_the_kind_comes_from_the_table_or_the_file(made: Model, header: GgufHeader | None, kind: str) -> None:
    assert model_kind(made, header) == kind


@pytest.mark.parametrize(
    ("params", "header", "slots", "tokens"),
    [
        ({"n_ctx": 8192}, None, 4, 2048),
        ({"n_ctx": 8192}, bert(1), 4, 512),
        ({"n_ctx": 1024}, bert(1), 4, 256),
        ({"n_ctx": 8192, "batch_override": 256}, bert(1), 1, 256),
        ({"n_ctx": 8192, "batch_override": 256}, bert(0), 1, 512),
        ({"n_ctx": 8192, "embedding": True}, GgufHeader(3, 0, {}, 1), 2, 4096),
    ],
)
def test_one_request_has_what_its_slot_and_the_training_allow(
    params: dict[str, Any], header: GgufHeader | None, slots: int, tokens: int
) -> None:
    assert request_context_tokens(model(params), header, slots) == tokens


def test_an_embedding_model_has_a_whole_text_batch() -> None:
    assert "--ubatch-size 512 --batch-size 512 " in words(
        NEW, model({"n_ctx": 4096, "parallel_override": 1}), header=bert(1)
    )
    assert "--ubatch-size 2048 --batch-size 2048 " in words(NEW, model({"n_ctx": 4096, "embedding": True}))
    assert "--batch-size 300 " in words(NEW, model({"n_ctx": 4096, "embedding": True, "batch_override": 300}))
    assert "--ubatch-size" not in words(NEW, model())


def test_everything_that_runs_beside_a_model_takes_memory(tiny_models: Path) -> None:
    chat, lora = tiny_models / "tiny-chat.gguf", tiny_models / "tiny-lora.gguf"
    header, system = read_header(chat), System(min_vram_required=200)

    def extras(**values: Any) -> int:
        made = estimate_memory(Model("a", chat, Params(), "table", **values), system, header)
        assert made.total == made.weights + made.cache + made.buffers + made.extras
        return made.extras

    alone = estimate_memory(Model("a", chat, Params(), "table"), system, header)
    assert (alone.extras, alone.weights, alone.total) == (0, chat.stat().st_size, 200 * MIB)
    assert extras(lora=(LoraAdapter(lora), LoraAdapter(lora, 0.5))) == 2 * lora.stat().st_size
    assert extras(mmproj_path=chat) == round(1.1 * chat.stat().st_size)
    draft = extras(draft_model_path=chat)
    assert draft > chat.stat().st_size + alone.cache
    assert extras(draft_model_path=tiny_models / "no-such.gguf") == 0


def test_the_estimate_counts_all_parts(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"big-0000{number}-of-00003.gguf").write_bytes(b"x" * number * MIB)
    made = estimate_memory(
        Model("a", tmp_path / "big-00001-of-00003.gguf", Params(), "table"),
        System(min_vram_required=200),
        None,
    )
    assert made.is_rough
    assert made.weights == round(6 * 1.1 * MIB)
    first = GgufHeader(3, 0, {"general.architecture": "llama"}, MIB)
    assert (
        estimate_memory(
            Model("a", tmp_path / "big-00001-of-00003.gguf", Params(), "table"), System(), first
        ).weights
        == made.weights
    )


def test_further_arguments_come_last() -> None:
    made = model(extra_args=("--pooling", "cls", "--batch-size", "-1"))
    assert words(NEW, made).endswith("--pooling cls --batch-size -1 ")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--poling",
            "`extra_args` has --poling, which this llama-server does not have: did you mean --pooling?",
        ),
        (
            "--fly",
            "`extra_args` has --fly, which this llama-server does not have: install a newer one, or remove",
        ),
        ("--draft-max", "--draft-max, which this llama-server does not have"),
    ],
)
def test_argument_that_the_server_lacks_is_refused(argument: str, said: str) -> None:
    with pytest.raises(InvalidCommand, match=re.escape(said)):
        words(NEW, model(extra_args=(argument,)))
