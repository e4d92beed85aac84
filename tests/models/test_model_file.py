"""What a model's file says, and what that changes in the model's state."""

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.models.manager.model_file import FileCheck, check_file, read_file, shape_text
from appliance.models.table.catalogue import LoraAdapter, Model
from appliance.models.table.entries import Params, System
from tests.models.manager_harness import HEADER
from tests.models.manager_states import manager_state, model_of, model_state

SYSTEM = System()


def test_readable_file_gives_header_need_and_key(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADER)
    found = read_file(model_of("a", path=path), SYSTEM)
    assert (found.problem, found.header is not None, bool(found.history_key)) == ("", True, True)
    assert found.estimate is not None


def test_missing_file_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert read_file(model_of("a", path=path), SYSTEM).problem == f"model file not found: {path}"


def test_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    problem = read_file(model_of("a", path=tmp_path), SYSTEM).problem
    assert problem == f"the file {tmp_path} is not a GGUF model: it is no regular file"


def test_file_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"no model at all")
    assert read_file(model_of("a", path=path), SYSTEM).problem.startswith(
        f"the file {path} is not a GGUF model: "
    )


@pytest.mark.parametrize(
    ("changes", "is_same"), [({"pinned": True}, True), ({"replicas": 3}, True), ({"alias": "b"}, False)]
)
def test_key_follows_how_one_server_is_started(
    tmp_path: Path, changes: dict[str, object], is_same: bool
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HEADER)
    model = model_of("a", path=path)
    keys = {read_file(one, SYSTEM).history_key for one in (model, replace(model, **changes))}
    assert (len(keys) == 1) is is_same


def test_text_of_the_key_stays_from_release_to_release() -> None:
    """As the first release wrote it: else what `model-lessons.json` holds would be lost with an update."""
    model = Model(
        "a", Path("/m/a.gguf"), Params(n_ctx=8192), "table", 2, True, (LoraAdapter(Path("/m/l.gguf"), 0.5),)
    )
    assert shape_text(model, SYSTEM, 4) == (
        "Model(alias='a', path=PosixPath('/m/a.gguf'), params=Params(n_gpu_layers=99, n_ctx=8192, n_batch=256, "
        "batch_override=None, rope_freq_base=None, embedding=False, chat_template=None, parallel_override=None, "
        "type_k='f16', type_v='f16'), origin='table', replicas=1, pinned=False, "
        "lora=(Lora(path=PosixPath('/m/l.gguf'), scale=0.5, name=''),), draft_model_path=None, "
        "mmproj_path=None, reranking=False, pooling=None) 8 4 on True"
    )
    assert shape_text(replace(model, aliases=("x",), preload=True), SYSTEM, 4) == shape_text(model, SYSTEM, 4)


def test_further_arguments_make_another_key() -> None:
    """They change how much memory a model takes, and how long it loads."""
    model = model_of("a")
    texts = {
        shape_text(one, SYSTEM, 4)
        for one in (model, replace(model, extra_args=("--swa-full",)), replace(model, env=(("A", "b"),)))
    }
    assert len(texts) == 3


def test_problem_keeps_what_was_known_of_the_file() -> None:
    model = model_state("a")
    FileCheck(4, "model file not found").apply_to(model)
    assert (model.file_problem, model.history_key, model.slots) == ("model file not found", "", 4)


@pytest.mark.parametrize(
    ("failure", "is_cleared"),
    [
        pytest.param("model file not found", True, id="failed-for-the-file-alone"),
        pytest.param("unknown argument", False, id="failed-for-another-reason"),
    ],
)
def test_mended_file_clears_the_failure_that_it_caused(failure: str, is_cleared: bool) -> None:
    model = model_state("a", file_problem="model file not found", failure=failure, attempts=1)
    FileCheck(2, "", history_key="new").apply_to(model)
    assert (model.file_problem, model.history_key) == ("", "new")
    assert (model.failure == "") is is_cleared


async def test_model_changed_during_the_check_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    former, now = model_of("a"), model_of("a", path=Path("/models/new.gguf"))
    model, checked = model_state("a", definition=former), list[Path]()

    def read(one: object, system: object) -> FileCheck:
        assert one in (former, now)
        checked.append(one.path)  # type: ignore[attr-defined]
        model.definition = now
        return FileCheck(2, "", history_key=str(one.path))  # type: ignore[attr-defined]

    monkeypatch.setattr("appliance.models.manager.model_file.read_file", read)
    await check_file(model, manager_state(model))
    assert (checked, model.history_key) == ([former.path, now.path], str(now.path))
