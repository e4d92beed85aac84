"""Commands of the table: their words, what they may name, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.command import request_context_tokens, slot_count
from appliance.models.table.engine import (
    EngineCommand,
    InvalidReference,
    fill_words,
    split_command,
)
from appliance.models.table.entries import Params, System


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serve --port ${PORT}", ("serve", "--port", "${PORT}")),
        ("serve \\\n  --name 'two words'  ", ("serve", "--name", "two words")),
        ("# which one\nserve\n  # why\n  --fast", ("serve", "--fast")),
        ("serve '#no comment' a#b", ("serve", "#no comment", "a#b")),
        ("sh -c 'exec serve $PORT; true'", ("sh", "-c", "exec serve $PORT; true")),
        ("serve $(id) `id` > /tmp/x", ("serve", "$(id)", "`id`", ">", "/tmp/x")),
    ],
)
def test_a_command_line_is_split_and_nothing_expanded(text: str, words: tuple[str, ...]) -> None:
    assert split_command(text) == words


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("--port=${PORT}", "--port=9001"),
        ("${MODEL}:${MODEL_PATH}", "a b:/m/a.gguf"),
        ("${env.HOME}/x", "/home/me/x"),
        ("$${PORT} $PORT $$", "${PORT} $PORT $$"),
        ("${env.EVIL}", "${PORT}"),  # what was filled in is not read again
    ],
)
def test_references_are_filled_once(word: str, filled: str) -> None:
    environ = {"HOME": "/home/me", "EVIL": "${PORT}"}
    assert fill_words([word], port=9001, alias="a b", path=Path("/m/a.gguf"), environ=environ) == [filled]


def test_a_variable_that_the_engine_does_not_get_is_named() -> None:
    with pytest.raises(InvalidReference, match=r"\$\{env.NOVITA_API_KEY\}, which is not in the environment"):
        fill_words(["${env.NOVITA_API_KEY}"], port=1, alias="a", path=None, environ={})


def read(tmp_path: Path, row: dict[str, Any]) -> tuple[Catalogue, list[str], list[str]]:
    """Return (table, fatal problems, warnings) of a table with this one model."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"models": {"a": row}}))
    catalogue, problems = read_catalogue(ModelSettings(llama_server_path=Path("/nowhere")), config)
    texts = [(problem.is_fatal, str(problem).replace(str(tmp_path), "")) for problem in problems]
    return catalogue, [text for fatal, text in texts if fatal], [text for fatal, text in texts if not fatal]


def test_a_model_with_a_command_needs_neither_file_nor_llama_server(tmp_path: Path) -> None:
    row = {
        "command": "sh serve.sh ${PORT}",
        "engine_kind": "vllm",
        "health_path": "/ready",
        "ready_timeout_sec": 900,
        "served_model": "org/model",
        "memory_mb": 20_000,
        "context_tokens": 262_144,
        "max_concurrency": 64,
        "params": {"embedding": True, "n_gpu_layers": 0},
    }
    catalogue, fatal, warnings = read(tmp_path, row)
    assert (fatal, warnings) == ([], [])
    model = catalogue.models["a"]
    assert (model.path, model.files) == (None, {})
    assert model.engine == EngineCommand(
        ("sh", "serve.sh", "${PORT}"), "vllm", "/ready", 900.0, "org/model", 20_000 << 20, 262_144
    )
    assert (slot_count(model, System()), request_context_tokens(model, None, 64)) == (64, 262_144)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({}, "models.a: allowed: .* Model_path or command is required"),
        ({"command": ""}, "models.a.command: .* A command needs a program as its first word"),
        ({"command": []}, "A command needs a program as its first word"),
        ({"command": "serve 'x"}, "The command line cannot be split into words \\(No closing quotation\\)"),
        ({"command": ["serve", 8]}, "models.a.command.1: .* must be a text"),
        ({"command": "serve ${HOST}"}, r"\$\{HOST\} is not known; known are \$\{PORT\}, .*\$\{env.NAME\}"),
        ({"command": "serve ${env.}"}, "is not known"),
        ({"command": ["serve", "a\0b"]}, "models.a.command.1 a text with a zero byte"),
        ({"command": ["x"] * 501}, "500 words"),
        ({"command": "serve ${MODEL_PATH}"}, r"names \$\{MODEL_PATH\}, but there is no model_path"),
        ({"command": "serve", "health_path": "ready"}, "path that begins with /, or `none`"),
        ({"command": "serve", "health_path": "/a b"}, "path that begins with /"),
        ({"command": "serve", "ready_timeout_sec": 0}, "greater than or equal to 1"),
        ({"command": "serve", "engine_kind": "auto"}, "'openai', 'llamacpp', 'vllm' or 'sglang'"),
        ({"command": "serve", "max_concurrency": 0}, "greater than or equal to 1"),
        ({"command": "serve", "lora": ["a.gguf"]}, "Lora is for a llama-server; with a command, say it"),
        ({"command": "serve", "params": {"n_ctx": 8192}}, "Params.n_ctx is for a llama-server"),
        ({"command": "serve", "before_load": "x ${PORT}"}, r"Before_load names \$\{PORT\}, which is chosen"),
        (
            {"command": "serve", "after_unload": "x ${MODEL_PATH}"},
            r"After_unload names \$\{MODEL_PATH\}, but",
        ),
        ({"command": "serve", "after_unload": []}, "models.a.after_unload: .* needs a program"),
        (
            {"command": "serve", "hook_timeout_sec": 0},
            "models.a.hook_timeout_sec: .* greater than or equal to 1",
        ),
        ({"model_path": "a.gguf", "memory_mb": 9, "served_model": "b"}, "Memory_mb, served_model needs a"),
    ],
)
def test_what_a_command_cannot_be_is_refused(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    _, fatal, _ = read(tmp_path, row)
    assert len(fatal) == 1
    assert re.search(text, fatal[0]), fatal[0]


def test_a_missing_program_and_an_unnamed_port_are_warnings(tmp_path: Path) -> None:
    _, fatal, warnings = read(tmp_path, {"command": "/nowhere/serve --fast"})
    assert fatal == []
    assert "models.a.command: Program not found: /nowhere/serve" in warnings[0]
    assert "must listen on the port in its variable PORT" in warnings[1]
    assert read(tmp_path, {"command": "sh -c 'exec serve $PORT'"})[2] == []


@pytest.mark.parametrize(
    ("engine", "paths"),
    [
        (EngineCommand(("x",)), ("/health", "/v1/models")),
        (EngineCommand(("x",), health_path="/"), ("/",)),
        (EngineCommand(("x",), health_path="none"), ()),
    ],
)
def test_where_an_engine_is_asked_whether_it_is_ready(engine: EngineCommand, paths: tuple[str, ...]) -> None:
    assert engine.health_paths == paths


@pytest.mark.parametrize(
    ("n_ctx", "max_concurrency", "slots"), [(8192, None, 4), (8192, 2, 2), (4096, 3, 2), (8192, 100, 4)]
)
def test_max_concurrency_limits_the_slots_of_a_llama_server(
    n_ctx: int, max_concurrency: int | None, slots: int
) -> None:
    model = Model("a", Path("/a.gguf"), Params(n_ctx=n_ctx), "table", max_concurrency=max_concurrency)
    assert slot_count(model, System()) == slots
