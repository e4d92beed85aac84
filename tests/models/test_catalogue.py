"""The model table, the estimate, the command line; and `appliance models check` on real files."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from appliance.models.check import check_models
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Model
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.command import Flags, build_command, slot_count
from appliance.models.table.entries import ModelEntry, Params, System, Table
from appliance.models.table.estimate import MIB, estimate
from appliance.models.table.gguf import GgufHeader, read_header
from appliance.models.table.schema import build_schema
from tests.journeys.llama_servers import HELLO, LlamaServer
from tests.tools.tiny_models import LORA_REPLY, REPLY

ROOT = Path(__file__).parents[2]
NEW = (
    "-fa,   --flash-attn [on|off|auto]\n--model FILE --alias --host --port --n-gpu-layers --ctx-size "
    "--batch-size --parallel --threads --metrics --slots --jinja\n"
    "--no-context-shift --rope-freq-base --no-mmap --embedding --chat-template --cache-type-k --cache-type-v"
)
OLD = NEW.replace("[on|off|auto]", "enable flash attention").replace("--jinja", "").replace("--slots", "")


def written(folder: Path, value: Any) -> Path:
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def read(folder: Path, value: Any, **settings: Any):
    return read_catalogue(
        ModelSettings(**{"llama_server_path": Path(sys.executable), **settings}), written(folder, value)
    )


def test_the_example_holds_every_default(tmp_path: Path) -> None:
    example = json.loads((ROOT / "etc" / "models.example.json").read_text())
    catalogue, problems = read(
        tmp_path, {**example, "system": {**example["system"], "base_models_path": str(tmp_path)}}
    )
    assert not any(problem.is_fatal for problem in problems)
    missing = [problem.remedy[:16] for problem in problems]  # files and programs, none of which is here
    assert missing == ["Model file not f"] * 8 + ["Program not foun"] * 2
    assert set(catalogue.models) == {"chat", "seeing", "embedder", "ranker", "large", "whisper"}
    assert catalogue.models["chat"].path == tmp_path / "chat-7b.Q4_K_M.gguf"
    shown = catalogue.system.model_dump(mode="json")
    assert set(shown) == set(example["system"])
    given = {"llama_server_path", "base_models_path", "preload_models"}
    assert {k: v for k, v in shown.items() if k not in given} == {
        k: v for k, v in example["system"].items() if k not in given
    }


def test_the_shipped_schema_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "models", "schema"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shipped = (ROOT / "etc" / "models.schema.json").read_text()
    assert shipped == done.stdout, "make it new: appliance models schema > etc/models.schema.json"
    example = json.loads((ROOT / "etc" / "models.example.json").read_text())
    keys = json.loads(shipped)["properties"]
    assert set(example) <= set(keys)
    assert {"backends", "pools"} <= set(keys)
    assert (ROOT / "etc" / example["$schema"]).is_file()
    table = Table.model_validate({key: value for key, value in example.items() if key in Table.model_fields})
    shown = [set(entry.model_fields_set) for entry in table.models.values()]
    assert set().union(*shown) == set(ModelEntry.model_fields)


def test_the_schema_has_limits_and_adapter_forms() -> None:
    kinds = build_schema()["$defs"]
    assert (
        kinds["ModelEntry"]["properties"]["replicas"]["minimum"],
        kinds["ModelEntry"]["properties"]["replicas"]["maximum"],
    ) == (1, 16)
    assert re.search(kinds["ModelEntry"]["properties"]["model_path"]["anyOf"][0]["pattern"], "a.GGUF")
    assert [form["type"] for form in kinds["LoraEntry"]["anyOf"]] == ["string", "object"]
    assert all(kind.get("additionalProperties", False) is False for kind in kinds.values())
    assert all("description" in key for kind in kinds.values() for key in kind.get("properties", {}).values())
    assert build_schema()["additionalProperties"] is False
    assert build_schema()["properties"]["models"]["minProperties"] == 1


@pytest.mark.parametrize(
    ("value", "where", "said"),
    [
        ("{", "", "not JSON"),
        ([1], "", "one JSON object"),
        ({"models": {}}, "models", "empty"),
        ({"models": {"a": {}}}, "models.a", "Model_path or command is required"),
        ({"models": {"a": {"model_path": "a.bin"}}}, "models.a.model_path", ".gguf"),
        ({"models": {"a": {"model_path": "a.gguf", "x": 1}}}, "models.a.x", "Unknown key"),
        (
            {"models": {"a": {"model_path": "a.gguf", "params": {"n_ctx": 100}}}},
            "models.a.params.n_ctx",
            "512",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "params": {"type_k": "f8"}}}},
            "models.a.params.type_k",
            "f16",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "params": {"rope_freq_base": -1}}}},
            "models.a.params.rope_freq_base",
            "0",
        ),
        ({"system": {"max_concurrent_models": 11}}, "system.max_concurrent_models", "10"),
        ({"system": {"flash_attention": "yes"}}, "system.flash_attention", "on"),
        ({"system": {"preload_models": ["b"]}}, "system.preload_models", "'b'"),
        ({"system": {"oops": 1}}, "system.oops", "Unknown key"),
        ({"system": {"paralel_requests": 1}}, "system.paralel_requests", "Did you mean parallel_requests?"),
        (
            {"models": {"a": {"model_path": "a.gguf", "params": {"ctx": 1}}}},
            "models.a.params.ctx",
            "Did you mean n_ctx?",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "defaults": {"temp": 1}}}},
            "models.a.defaults.temp",
            "mean temperature?",
        ),
        ({"models": {"a": {"model_path": "a.gguf", "zzz": 1}}}, "models.a.zzz", "Unknown key. Allowed: a"),
        ({"models": {"a": {"model_path": "a.gguf", "aliases": ["b,c"]}}}, "models.a.aliases.0", "no comma"),
        (
            {"models": {"a": {"model_path": "a.gguf", "aliases": ["a"]}}},
            "models.a.aliases.0",
            "of 'a' already",
        ),
        (
            {"models": {n: {"model_path": "a.gguf", "aliases": ["x"]} for n in "ab"}},
            "models.b.aliases.0",
            "'x' is a name of 'a' already",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "defaults": {"temperature": "hot"}}}},
            "models.a.defaults.temperature",
            "number",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "force": {"max_tokens": 0}}}},
            "models.a.force.max_tokens",
            "1",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "force": {"stream": True}}}},
            "models.a.force.stream",
            "Unknown key",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "system_prompt": ""}}},
            "models.a.system_prompt",
            "at least 1",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--host", "0.0.0.0"]}}},
            "models.a.extra_args.0",
            "where its llama",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--api_key", "x"]}}},
            "models.a.extra_args.0",
            "--api-key cannot",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--port=1"]}}},
            "models.a.extra_args.0",
            "--port cannot",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--log-file", "x"]}}},
            "models.a.extra_args.0",
            "MODEL_LOG_DIR",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--ssl-key-file", "x"]}}},
            "models.a.extra_args.0",
            "cannot be given",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--version"]}}},
            "models.a.extra_args.0",
            "exit",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--gpt-oss-20b-default"]}}},
            "models.a.extra_args.0",
            "model_path",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["-c", "1"]}}},
            "models.a.extra_args.0",
            "`params.n_ctx`",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["--keep 4"]}}},
            "models.a.extra_args.0",
            "two arguments",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "extra_args": ["4"]}}},
            "models.a.extra_args",
            "must be a flag",
        ),
        ({"models": {"a": {"model_path": "a.gguf", "env": {"1A": "x"}}}}, "models.a.env.1A.[key]", "digit"),
        (
            {"models": {"a": {"model_path": "a.gguf", "env": {"CUDA_VISIBLE_DEVICES": "1"}}}},
            "models.a.env",
            "gpu_devices",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "env": {"LLAMA_ARG_HOST": "x"}}}},
            "models.a.env",
            "extra_args",
        ),
        ({"models": {"a": {"model_path": "a.gguf", "env": {"A": True}}}}, "models.a.env.A", "a text"),
        ({"models": {"a": {"model_path": "a.gguf", "env": {"A": "x\0"}}}}, "models.a.env.A", "zero byte"),
        ({"models": {"a": {"model_path": "a.gguf", "idle_timeout_sec": 0}}}, "models.a", "-1 (never)"),
        (
            {"models": {"a": {"model_path": "a.gguf", "idle_timeout_sec": 9, "pin": True}}},
            "models.a",
            "never unloaded",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "pinned": False, "pin": True}}},
            "models.a",
            "one of them",
        ),
        ({"models": {"a": {"model_path": "a.gguf", "replicas": 17}}}, "models.a.replicas", "16"),
        ({"models": {"a": {"model_path": "a.gguf", "pooling": "max"}}}, "models.a.pooling", "cls"),
        (
            {"models": {"a": {"model_path": "a.gguf", "lora": ["b.safetensors"]}}},
            "models.a.lora.0.path",
            ".bin",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "lora": [{"path": "b.gguf", "scale": "much"}]}}},
            "models.a.lora.0.scale",
            "number",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "lora": [{"path": "b.gguf", "strength": 1}]}}},
            "models.a.lora.0.strength",
            "Unknown key",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "draft_model_path": "b.bin"}}},
            "models.a.draft_model_path",
            ".gguf",
        ),
        ({"models": {"a": {"model_path": "a.gguf", "mmproj_path": "b"}}}, "models.a.mmproj_path", ".gguf"),
        (
            {"models": {"a": {"model_path": "a.gguf", "reranking": True, "pooling": "mean"}}},
            "models.a",
            "pooling rank, not mean",
        ),
        (
            {"models": {"a": {"model_path": "a.gguf", "reranking": True, "draft_model_path": "b.gguf"}}},
            "models.a",
            "text models",
        ),
        ({"models": {"a,b": {"model_path": "a.gguf"}}}, "models.a,b", "no comma"),
        ({"models": {"": {"model_path": "a.gguf"}}}, "models.", "1-128"),
        ({"api": {"port": 80}}, "api.port", "1024"),
        ({"system": {"queue_timeout_sec": "soon"}}, "system.queue_timeout_sec", "integer"),
    ],
)
def test_invalid_value_is_refused_with_its_path(tmp_path: Path, value: Any, where: str, said: str) -> None:
    _, problems = read(tmp_path, value)
    fatal = [str(p) for p in problems if p.is_fatal]
    assert len(fatal) == 1
    assert where in fatal[0]
    assert said in fatal[0]


def test_variables_take_precedence_and_relative_paths_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    value = {
        "system": {"base_models_path": "/nowhere", "llama_server_path": "/from/file"},
        "models": {"a": {"model_path": "a.gguf"}, "b": {"model_path": "/b.gguf"}},
    }
    catalogue, problems = read(
        tmp_path, value, base_models_path=tmp_path / "env", llama_server_path=Path("/from/env")
    )
    assert [p.value for p in problems if p.is_fatal] == ["/from/env"]
    assert (catalogue.models["a"].path, catalogue.models["b"].path, catalogue.llama_server) == (
        tmp_path / "env" / "a.gguf",
        Path("/b.gguf"),
        "/from/env",
    )
    assert [p.variable for p in read(tmp_path, value)[1] if p.is_fatal] == ["BASE_MODELS_PATH"]


def test_folder_is_a_table_and_named_models_take_precedence(tmp_path: Path, tiny_models: Path) -> None:
    catalogue, problems = read_catalogue(
        ModelSettings(llama_server_path=Path(sys.executable), model_dir=tiny_models), None
    )
    assert problems == []
    assert set(catalogue.models) == {"tiny-chat", "tiny-embed", "tiny-rerank"}  # an adapter is no model
    assert catalogue.models["tiny-chat"].origin == "folder"
    catalogue, _ = read(
        tmp_path, {"models": {"tiny-chat": {"model_path": "/other.gguf"}}}, model_dir=tiny_models
    )
    assert catalogue.models["tiny-chat"].path == Path("/other.gguf")
    assert [
        p.variable
        for p in read_catalogue(
            ModelSettings(llama_server_path=Path(sys.executable), model_dir=tmp_path / "none"), None
        )[1]
    ] == ["MODEL_DIR"]


def test_beside_backends_a_folder_that_cannot_be_served_is_left_alone(
    tmp_path: Path, tiny_models: Path
) -> None:
    """The folder may be that of the backends' models, which is not here."""
    here, none = Path(sys.executable), Path("/no/such")
    for folder, server, said in (
        (tmp_path / "none", here, "No such folder here"),
        (tiny_models, none, "no llama-server"),
    ):
        settings = ModelSettings(llama_server_path=server, model_dir=folder)
        catalogue, problems = read_catalogue(settings, None, has_backends=True)
        assert catalogue.models == {}
        assert [(p.variable, p.is_fatal) for p in problems] == [("MODEL_DIR", False)]
        assert said in problems[0].remedy
        assert any(p.is_fatal for p in read_catalogue(settings, None)[1])
    settings = ModelSettings(llama_server_path=here, model_dir=tiny_models)
    assert "tiny-chat" in read_catalogue(settings, None, has_backends=True)[0].models


@pytest.mark.parametrize(
    ("given", "system", "said"),
    [
        ({"llama_server_path": Path("/no/such")}, {}, "LLAMA_SERVER_PATH=/no/such"),
        ({"llama_server_path": ROOT / "README.md"}, {}, "README.md: allowed: a program"),
        ({"llama_server_path": None}, {"llama_server_path": "/no/such"}, "system.llama_server_path=/no/such"),
        ({"llama_server_path": None}, {}, "llama-server not found in PATH"),
    ],
)
def test_models_without_a_program_to_run_them_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    system: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "a.gguf").touch()
    _, problems = read(tmp_path, {"system": system, "models": {"a": {"model_path": "a.gguf"}}}, **given)
    assert [p.is_fatal for p in problems] == [True]
    assert said in str(problems[0])
    assert read(tmp_path, {"system": system}, **given)[1] == []  # nothing to run: no program is missed


def test_a_missing_file_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    catalogue, problems = read(
        tmp_path,
        {"models": {"a": {"model_path": "a.gguf", "lora": ["gone.bin"]}, "b": {"model_path": "b.gguf"}}},
    )
    assert set(catalogue.models) == {"a", "b"}
    assert [(p.is_fatal, p.value) for p in problems] == [
        (False, "models.a.lora.0.path"),
        (False, "models.b.model_path"),
    ]
    assert str(tmp_path / "b.gguf") in str(problems[1])


def test_a_context_that_older_readers_refuse_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    _, problems = read(tmp_path, {"models": {"a": {"model_path": "a.gguf", "params": {"n_ctx": 16_384}}}})
    assert [(p.is_fatal, "16384" in str(p)) for p in problems] == [(False, True)]


# ---- memory


def header(size: int, **values: Any) -> GgufHeader:
    return GgufHeader(
        3,
        0,
        {
            "general.architecture": "llama",
            **{f"llama.{key.replace('__', '.')}": value for key, value in values.items()},
        },
        size,
    )


def test_the_cache_size_is_computed_from_layers_heads_and_types() -> None:
    seven_b = header(
        4_000 * MIB,
        block_count=32,
        embedding_length=4096,
        attention__head_count=32,
        attention__head_count_kv=8,
        vocab_size=32_000,
    )
    made = estimate(seven_b, context_tokens=8192)
    assert made.cache == 32 * 8 * (128 + 128) * 2 * 8192  # 1 GiB, as llama.cpp says for this model
    assert estimate(seven_b, context_tokens=8192, type_k="q8_0", type_v="q8_0").cache == round(
        made.cache * 34 / 64
    )
    assert estimate(seven_b, context_tokens=16_384).cache == 2 * made.cache
    assert made.weights == 4_000 * MIB
    assert not made.is_rough
    layers = header(
        MIB,
        block_count=2,
        embedding_length=64,
        attention__head_count=4,
        attention__head_count_kv=[4, 1],
        attention__key_length=32,
        attention__value_length=16,
    )
    assert estimate(layers, context_tokens=100).cache == 5 * (32 + 16) * 2 * 100


def test_incomplete_header_gives_a_rough_estimate() -> None:
    made = estimate(header(1000 * MIB), context_tokens=4096, multiplier=1.1)
    assert made.is_rough
    assert made.total == round((1000 * 1.1 + 4 * 50 + 150) * MIB)
    assert estimate(header(MIB), context_tokens=1024, floor_bytes=500 * MIB).total == 500 * MIB


# ---- the command line


def model(**params: Any) -> Model:
    return Model("a", Path("/m/a.gguf"), Params(**params), "table")


@pytest.mark.parametrize(
    ("params", "slots"),
    [
        ({}, 2),
        ({"n_ctx": 8192}, 4),
        ({"n_ctx": 512}, 1),
        ({"n_ctx": 65_536}, 4),
        ({"n_ctx": 65_536, "parallel_override": 32}, 32),
        ({"parallel_override": 1}, 1),
    ],
)
def test_each_slot_has_context_enough(params: dict[str, Any], slots: int) -> None:
    assert slot_count(model(**params), System()) == slots


def test_flags_that_this_server_does_not_know_are_left_out() -> None:
    new, old = (
        build_command("/bin/l", model(), System(), Flags.of_help(text), port=8085) for text in (NEW, OLD)
    )
    assert " ".join(new[-2:]) == "-fa on"
    assert old[-1] == "-fa"
    assert "--jinja" in new
    assert not {"--jinja", "--slots"} & set(old)
    assert new[:9] == [
        "/bin/l",
        "--model",
        "/m/a.gguf",
        "--alias",
        "a",
        "--host",
        "127.0.0.1",
        "--port",
        "8085",
    ]
    assert "-fa" not in build_command(
        "/bin/l", model(), System(flash_attention="off"), Flags.of_help(OLD), port=1
    )


@pytest.mark.parametrize(
    ("made", "system", "header", "has", "has_not"),
    [
        (model(embedding=True), System(), None, "--embedding", "--jinja"),
        (model(), System(use_mmap=False), None, "--no-mmap", "--embedding"),
        (model(rope_freq_base=1e6), System(), None, "--rope-freq-base 1e+06", "--no-mmap"),
        (model(chat_template="chatml"), System(), None, "--chat-template chatml", "--no-mmap"),
        (model(batch_override=1024), System(), None, "--batch-size 1024", "--batch-size 256"),
        (model(type_k="q8_0"), System(), None, "--cache-type-k q8_0", "--cache-type-v q8_0"),
        (model(), System(), header(1, attention__sliding_window=4096), "--metrics", "--no-context-shift"),
        (model(), System(), header(1, pooling_type=1), "--embedding", "--jinja"),
    ],
)
def test_what_the_table_says_is_in_the_command_line(
    made: Model,
    system: System,
    header: GgufHeader | None,
    has: str,
    has_not: str,
) -> None:
    line = " ".join(build_command("l", made, system, Flags.of_help(NEW), port=1, header=header))
    assert has in line
    assert has_not not in line


# ---- the verb


def run_check(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance", "models", "check", *arguments],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


RUNNING = {
    "tiny": {
        "model_path": "tiny-chat.gguf",
        "params": {"type_k": "q8_0", "type_v": "q8_0"},
        "pinned": True,
        "replicas": 2,
    },
    "adapted": {"model_path": "tiny-chat.gguf", "lora": ["tiny-lora.gguf"]},
    "weakly": {
        "model_path": "tiny-chat.gguf",
        "lora": [{"path": "tiny-lora.gguf", "scale": 0}, "tiny-lora.gguf"],
    },
    "guessing": {"model_path": "tiny-chat.gguf", "draft_model_path": "tiny-chat.gguf"},
    "vectors": {"model_path": "tiny-embed.gguf", "params": {"n_ctx": 512}},
    "pooled": {
        "model_path": "tiny-embed.gguf",
        "params": {"n_ctx": 512, "embedding": True},
        "pooling": "cls",
    },
    "scores": {"model_path": "tiny-rerank.gguf", "params": {"n_ctx": 512}},
    "ranker": {
        "model_path": "tiny-rerank.gguf",
        "params": {"n_ctx": 512},
        "reranking": True,
        "pooling": "rank",
    },
}
SAID = {"adapted": LORA_REPLY, "weakly": LORA_REPLY, "tiny": REPLY, "guessing": REPLY}


@pytest.mark.parametrize(
    "system",
    [{"cpu_threads": 1}, {"cpu_threads": 1, "use_mmap": False, "flash_attention": "auto"}],
    ids=["as usual", "read into memory"],
)
async def test_what_the_check_prints_really_runs(
    llama_binary: str, tiny_models: Path, tmp_path: Path, system: dict[str, Any]
) -> None:
    config = written(tmp_path, {"system": system, "models": RUNNING})
    done = await asyncio.to_thread(
        run_check,
        "--json",
        CONFIG_PATH=str(config),
        BASE_MODELS_PATH=str(tiny_models),
        LLAMA_SERVER_PATH=llama_binary,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [one["alias"] for one in report["models"]] == list(RUNNING)
    for one in report["models"]:
        words = one["command"]
        at = words.index("--port")
        server = LlamaServer(words[:at] + words[at + 2 :], tmp_path / f"{one['alias']}.log")
        try:
            await server.start()
            assert server.get("/v1/models")["data"][0]["id"] == one["alias"]
            await asyncio.to_thread(answers, server, one["alias"], one["facts"]["kind"])
        finally:
            server.kill9()


def answers(server: LlamaServer, alias: str, kind: str) -> None:
    """Ask it for what it is for."""
    if kind == "text":
        reply = posted(server, "/v1/chat/completions", {"messages": HELLO})
        assert reply["choices"][0]["message"]["content"] == SAID[alias]
        assert (reply["timings"].get("draft_n_accepted", 0) > 0) == (alias == "guessing")
    elif kind == "embedding":
        text = "word " * 80  # 320 of its tokens, more than a batch of other models
        assert len(posted(server, "/v1/embeddings", {"input": [text, "b"]})["data"][0]["embedding"]) == 64
    else:
        assert len(posted(server, "/v1/rerank", {"query": "a", "documents": ["a", "b"]})["results"]) == 2


def posted(server: LlamaServer, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"lora": ["no-such.gguf"]}, "lora.0.path: {}/no-such.gguf: no such file"),
        (
            {"lora": ["tiny-chat.gguf"]},
            "lora.0.path: the file is of type model, not adapter",
        ),
        (
            {"draft_model_path": "tiny-lora.gguf"},
            "draft_model_path: the file is of type adapter, not model",
        ),
        (
            {"mmproj_path": "tiny-chat.gguf"},
            "mmproj_path: the file is of type model, not mmproj",
        ),
        (
            {"model_path": "tiny-embed.gguf", "lora": ["tiny-lora.gguf"]},
            "lora.0.path: the adapter is for the architecture llama, the model has bert",
        ),
        ({"model_path": "big-00001-of-00002.gguf"}, "no such file"),
    ],
)
def test_a_file_that_is_not_what_its_key_says_is_named(
    tiny_models: Path,
    tmp_path: Path,
    llama_binary: str,
    entry: dict[str, Any],
    said: str,
) -> None:
    config = written(
        tmp_path,
        {
            "models": {
                "good": {"model_path": "tiny-chat.gguf"},
                "bad": {"model_path": "tiny-chat.gguf", **entry},
            }
        },
    )
    catalogue, _ = read_catalogue(
        ModelSettings(base_models_path=tiny_models, llama_server_path=Path(llama_binary)), config
    )
    good, bad = check_models(catalogue).models
    assert (good.problem, bad.problem) == ("", said.format(tiny_models))
    assert good.command
    assert not bad.command


def test_a_server_without_a_needed_flag_is_reported(tiny_models: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-llama-server"
    old.write_text("#!/bin/sh\necho '--model FNAME --host HOST --port PORT --no-mmap'\n")
    old.chmod(0o755)
    config = written(
        tmp_path,
        {
            "system": {"use_mlock": True},
            "models": {
                "a": {
                    "model_path": "tiny-chat.gguf",
                    "lora": ["tiny-lora.gguf"],
                    "draft_model_path": "tiny-embed.gguf",
                }
            },
        },
    )
    done = run_check(CONFIG_PATH=str(config), BASE_MODELS_PATH=str(tiny_models), LLAMA_SERVER_PATH=str(old))
    assert done.returncode == 78
    assert "PROBLEM: `lora` needs --lora, which this llama-server does not have" in done.stdout
    assert "note: system.use_mlock is true, but this llama-server cannot lock memory" in done.stdout
    assert "note: the draft model has " in done.stdout
    assert f"with draft_model_path: {tiny_models}/tiny-embed.gguf" in done.stdout
    assert " + extras " in done.stdout


def test_model_with_a_missing_part_is_reported(tmp_path: Path) -> None:
    (tmp_path / "big-00001-of-00002.gguf").touch()
    catalogue, _ = read(tmp_path, {"models": {"a": {"model_path": "big-00001-of-00002.gguf"}}})
    assert check_models(catalogue).models[0].problem == "incomplete model: big-00002-of-00002.gguf is missing"


def test_the_check_explains_itself_and_names_every_problem(
    llama_binary: str, tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.gguf").write_text("this is no model at all, but long enough")
    config = written(
        tmp_path,
        {
            "models": {
                "good": {"model_path": str(tiny_models / "tiny-chat.gguf"), "params": {"n_ctx": 16_384}},
                "gone": {"model_path": "/nowhere/m.gguf"},
                "broken": {"model_path": str(tmp_path / "broken.gguf")},
            }
        },
    )
    done = run_check(CONFIG_PATH=str(config), LLAMA_SERVER_PATH=llama_binary)
    assert done.returncode == 78
    assert "PROBLEM: no such file" in done.stdout
    assert "PROBLEM: not a GGUF model: it begins with" in done.stdout
    assert "note: n_ctx is larger than the 8192 tokens of training" in done.stdout
    assert "memory: about" in done.stdout
    assert f"{llama_binary} --model" in done.stdout
    assert "warning: " in done.stderr
    read = read_header(tiny_models / "tiny-chat.gguf")
    assert f"{read.architecture}" in done.stdout


@pytest.mark.parametrize(
    ("environ", "code", "said"),
    [
        ({"LLAMA_SERVER_PATH": "/no/such"}, 78, "llama-server not found: /no/such"),
        ({"LLAMA_SERVER_PATH": "/bin/true"}, 78, "is not that of a llama-server"),
        ({"CONFIG_PATH": "/no/such.json"}, 78, "/no/such.json"),
    ],
)
def test_a_server_or_a_table_that_cannot_be_used_is_named(
    environ: dict[str, str], code: int, said: str
) -> None:
    done = run_check(**environ)
    assert done.returncode == code
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_command_is_printed_without_its_secrets(tmp_path: Path, arguments: list[str]) -> None:
    own = {"command": "/bin/echo -1 --port ${PORT} --hf-token geheim-2 http://me:geheim-3@p/x"}
    shell = {"command": ["/bin/sh", "-c", "serve --api-key a1"], "engine_kind": "openai"}
    config = written(tmp_path, {"models": {"own": own, "shell": shell}})
    done = run_check(*arguments, CONFIG_PATH=str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "geheim" not in done.stdout + done.stderr
    assert done.stdout.count("[secret]") == 3
    assert "serve --api-key [secret]" in done.stdout
    assert "--hf-token" in done.stdout


def test_wrong_usage_is_reported() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "models", "check", "--loud"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "usage: appliance models check" in done.stderr) == (2, True)


def test_settings_of_a_model_are_read(tmp_path: Path) -> None:
    row = {
        "model_path": "a.gguf",
        "aliases": ["gpt-4", "best"],
        "defaults": {"temperature": 0, "stop": ["x"], "top_k": None},
        "force": {"seed": -1},
        "system_prompt": "Be short.",
        "extra_args": ["--threads-batch", 4, "--prio", "-1"],
        "env": {"A": "b", "N": 4},
        "pin": True,
        "preload": True,
    }
    catalogue, problems = read(tmp_path, {"models": {"a": row, "b": {"model_path": "b.gguf"}}})
    assert [problem.value for problem in problems if problem.is_fatal] == []
    model, other = catalogue.models["a"], catalogue.models["b"]
    assert (model.aliases, model.pinned, model.preload) == (("gpt-4", "best"), True, True)
    assert model.requests.defaults == {"temperature": 0, "stop": ["x"]}
    assert (model.requests.force, model.requests.system_prompt) == ({"seed": -1}, "Be short.")
    assert model.extra_args == ("--threads-batch", "4", "--prio", "-1")
    assert model.env == (("A", "b"), ("N", "4"))
    assert not other.requests
    assert [catalogue.name_of(name) for name in ("a", "best", "c")] == ["a", "a", None]
    assert catalogue.preloaded() == ["a"]


def test_preloaded_models_may_be_named_by_an_alias(tmp_path: Path) -> None:
    models = {
        "a": {"model_path": "a.gguf", "aliases": ["x"]},
        "b": {"model_path": "b.gguf", "preload": True},
    }
    catalogue, problems = read(tmp_path, {"system": {"preload_models": ["x"]}, "models": models})
    assert not any(problem.is_fatal for problem in problems)
    assert catalogue.preloaded() == ["a", "b"]


def test_arguments_for_llama_server_are_not_for_another_engine(tmp_path: Path) -> None:
    row = {"command": "engine --port ${PORT}", "extra_args": ["--keep", "4"], "env": {"A": "b"}}
    _, problems = read(tmp_path, {"models": {"a": row}})
    assert ["extra_args is for a llama-server" in problem.remedy.lower() for problem in problems] == [True]


@pytest.mark.parametrize(
    "row",
    [
        {"env": {"HF_TOKEN": "a-token-of-a-model"}},
        {"model_path": "a.gguf", "env": [{"HF_TOKEN": "a-token-of-a-model"}]},
        {"command": ["engine", "--api-key=a-token-of-a-model"], "model_path": "a.gguf", "lora": ["a.gguf"]},
    ],
)
def test_no_error_shows_a_whole_row(tmp_path: Path, row: dict[str, Any]) -> None:
    _, problems = read(tmp_path, {"models": {"a": row}})
    text = "".join(str(problem) for problem in problems if problem.is_fatal)
    assert "models.a" in text
    assert "a-token-of-a-model" not in text


def test_variables_with_names_of_secrets_are_secrets(tmp_path: Path) -> None:
    row = {"model_path": "a.gguf", "env": {"HF_TOKEN": "a-token-of-a-model", "MODE": "fast"}}
    assert read(tmp_path, {"models": {"a": row}})[0].secrets() == ["a-token-of-a-model"]


def test_secrets_of_command_lines_and_addresses_are_known(tmp_path: Path) -> None:
    row = {
        "command": "serve --port ${PORT} --api-key secret-1 --hf-token=secret-2 --max-tokens 100000 --no-auth "
        "--token ${env.T} --key-file /x --url http://u:secret-3@host",
        "before_load": ["sh", "-c", "MY_SECRET=secret-4 mount --password 'secret-5'"],
        "env": {
            "DB_PASSWORD_MAIN": "secret-6",
            "API_KEY_2": "secret-7",
            "DB_URL": "postgres://u:secret-8@host/db",
            "TOKENIZERS_PARALLELISM": "disabled",
            "TOKEN_LIMIT": "unlimited",
            "KEY_FILE": "/run/key",
        },
    }
    found = read(tmp_path, {"models": {"a": row}})[0].secrets()
    assert sorted(found) == [f"secret-{number}" for number in range(1, 9)]


def aliases_found(folder: Path, models: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """The problems of names, as (place, first words, whether it is fatal)."""
    rows = {name: {"model_path": "a.gguf", "aliases": aliases} for name, aliases in models.items()}
    return [
        (one.value.partition(": ")[2], one.remedy.partition(";")[0], one.is_fatal)
        for one in read(folder, {"models": rows})[1]
        if "is a name of" in one.remedy or "Ollama" in one.remedy or "A name must" in one.remedy
    ]


ONE_MODEL = "Ollama's clients take 'c' and 'c:latest' for one model"


@pytest.mark.parametrize(
    ("models", "place"),
    [
        ({"a": ["c:latest"], "c": []}, "models.a.aliases.0"),
        ({"a": ["x", "c:latest"], "b": ["c"]}, "models.a.aliases.1"),
        ({"c": [], "c:latest": []}, "models.c:latest"),
        ({"a": ["c"], "c:latest": []}, "models.c:latest"),
        ({"c": ["c:latest"]}, ""),
        ({"c:latest": ["c"]}, ""),
        ({"a": ["c:latest"]}, ""),
        ({"a": ["c:newest"], "c": []}, ""),
    ],
)
def test_names_that_ollama_takes_for_one_are_a_warning(
    tmp_path: Path, models: dict[str, Any], place: str
) -> None:
    assert aliases_found(tmp_path, models) == ([(place, ONE_MODEL, False)] if place else [])


@pytest.mark.parametrize("more", [[], ["y,z"], [7]], ids=["as names", "with no name", "with a number"])
def test_all_wrong_aliases_are_told_at_once(tmp_path: Path, more: list[Any]) -> None:
    found = aliases_found(tmp_path, {"a": ["b", "x", "x", "c:latest"], "b": ["a", "x", *more], "c": []})
    assert [one for one in found if "A name must" not in one[1]] == [
        ("models.a.aliases.0", "'b' is a name of 'b' already. Take another one.", True),
        ("models.a.aliases.2", "'x' is a name of 'a' already. Take another one.", True),
        ("models.b.aliases.0", "'a' is a name of 'a' already. Take another one.", True),
        ("models.b.aliases.1", "'x' is a name of 'a' already. Take another one.", True),
        ("models.a.aliases.3", ONE_MODEL, False),
    ]
