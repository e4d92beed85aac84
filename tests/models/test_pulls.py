"""Pulled models: names, the choice of a file, the index, and the table that is read from it."""

import hashlib
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Conflict, Forbidden, Invalid, NoSuchModel, NotFound
from appliance.base.tasks import Tasks
from appliance.downloads.contract import DownloadRequest, SourceOffer
from appliance.downloads.jobs import DownloadJobs
from appliance.models.pull_name import PullFiles, PullName, choose_files, parse_pull_name
from appliance.models.pulls import PulledModels, Pulls, pull_digest
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.models.table.pulled import INDEX, PulledModel, add_pulled, read_pulled, remove_pulled
from appliance.settings import load
from tests.downloads.standin_downloader import StandinDownloader

# ---- names


@pytest.mark.parametrize(
    ("name", "alias", "repository", "tag", "folder"),
    [
        ("hf.co/ns/repo", "hf.co/ns/repo", "ns/repo", "", "hf.co/ns/repo/latest"),
        ("hf.co/ns/repo:latest", "hf.co/ns/repo", "ns/repo", "", "hf.co/ns/repo/latest"),
        (
            "hf.co/ns/repo-GGUF:Q4_K_M",
            "hf.co/ns/repo-GGUF:Q4_K_M",
            "ns/repo-GGUF",
            "Q4_K_M",
            "hf.co/ns/repo-GGUF/Q4_K_M",
        ),
        (
            "huggingface.co/ns/repo:q8_0",
            "huggingface.co/ns/repo:q8_0",
            "ns/repo",
            "q8_0",
            "huggingface.co/ns/repo/q8_0",
        ),
        ("HF.co/ns/repo", "hf.co/ns/repo", "ns/repo", "", "hf.co/ns/repo/latest"),
        ("https://hf.co/ns/repo", "hf.co/ns/repo", "ns/repo", "", "hf.co/ns/repo/latest"),
        (
            "hf://ns/repo:a-b.Q2_K.gguf",
            "hf://ns/repo:a-b.Q2_K.gguf",
            "ns/repo",
            "a-b.Q2_K.gguf",
            "hf/ns/repo/a-b.Q2_K.gguf",
        ),
    ],
)
def test_names_of_models_on_hugging_face(
    name: str,
    alias: str,
    repository: str,
    tag: str,
    folder: str,
) -> None:
    found = parse_pull_name(name)
    assert found is not None
    assert (found.alias, found.repository, found.tag, found.folder.as_posix()) == (
        alias,
        repository,
        tag,
        folder,
    )
    assert found.source == f"hf://{repository}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "llama3",
        "llama3:8b",
        "ns/repo",
        "ns/repo:Q4_K_M",
        "registry.ollama.ai/library/x",
        "hf.com/ns/repo",
        "xhf.co/a/b",
    ],
)
def test_other_names_are_not_recognized(name: str) -> None:
    assert parse_pull_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "hf.co/",
        "hf.co/repo",
        "hf.co/ns/repo/deeper",
        "hf.co/ns/repo:",
        "hf.co/../etc",
        "hf.co/ns/..",
        "hf.co/ns/re po",
        "hf.co/ns/repo:a/b",
        "hf.co/ns/repo:..",
        "hf://ns",
        "hf.co/ns/repo\n",
        "hf.co/ns/" + "x" * 200,
    ],
)
def test_incomplete_names_on_hugging_face_are_refused(name: str) -> None:
    with pytest.raises(Invalid, match="invalid model name"):
        parse_pull_name(name)


# ---- the choice


def files(*paths: str) -> list[SourceOffer]:
    """Give files, each larger than the one before."""
    return [SourceOffer(path, 1000 + number, "") for number, path in enumerate(paths)]


MANY = files(
    "m-Q2_K.gguf",
    "m-Q8_0.gguf",
    "m-UD-Q4_K_M.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m-IQ4_XS.gguf",
    "README.md",
    "config.json",
    "m-F16.gguf",
)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("", "m-Q4_K_M.gguf"),
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q8_0", "m-Q8_0.gguf"),
        ("IQ4_XS", "m-IQ4_XS.gguf"),
        ("UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
        ("m-Q2_K.gguf", "m-Q2_K.gguf"),
        ("m-q2_k", "m-Q2_K.gguf"),
        ("f16", "m-F16.gguf"),
    ],
)
def test_a_tag_means_the_file_whose_name_has_it(tag: str, expected: str) -> None:
    assert [file.path for file in choose_files(MANY, tag).files] == [expected]


@pytest.mark.parametrize("tag", ["Q4_K", "Q4", "Q3_K_M", "README", "Q4_XS"])
def test_an_unknown_tag_is_refused_with_the_known_ones(tag: str) -> None:
    with pytest.raises(NotFound, match=r"not available in the repository: .*m-Q2_K"):
        choose_files(MANY, tag)


def test_without_tag_the_smallest_file_is_taken() -> None:
    assert choose_files(files("b-Q2_K.gguf", "a-Q8_0.gguf"), "").model[0].path == "b-Q2_K.gguf"
    assert choose_files([SourceOffer("z.gguf", 5), SourceOffer("a.gguf", 9)], "").model[0].path == "z.gguf"


def test_a_model_in_parts_is_taken_whole_and_in_order() -> None:
    parts = files(
        "Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q2_K-00001-of-00003.gguf"
    )
    choice = choose_files(parts, "Q8_0")
    assert [file.path for file in choice.files] == [
        "Q8_0/m-Q8_0-00001-of-00002.gguf",
        "Q8_0/m-Q8_0-00002-of-00002.gguf",
    ]
    assert choice.total_bytes == 2001
    with pytest.raises(NotFound):
        choose_files(parts, "Q2_K")


def test_projector_is_fetched_too_and_is_not_a_model() -> None:
    offered = files("mmproj-m-Q8_0.gguf", "mmproj-m-F16.gguf", "m-Q8_0.gguf", "imatrix.gguf")
    choice = choose_files(offered, "Q8_0")
    assert [file.path for file in choice.files] == ["m-Q8_0.gguf", "mmproj-m-F16.gguf"]
    assert choose_files(files("mmproj-b.gguf", "m.gguf"), "").projector == SourceOffer("mmproj-b.gguf", 1000)


@pytest.mark.parametrize(
    "paths",
    [
        (),
        ("model.safetensors", "README.md"),
        ("mmproj.gguf",),
        ("m*.gguf", "../m.gguf", "/m.gguf", "a,b.gguf"),
    ],
)
def test_a_repository_without_a_gguf_model_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match="Repository is not GGUF"):
        choose_files(files(*paths), "")


def test_unknown_sizes_give_no_total() -> None:
    assert choose_files([SourceOffer("a.gguf")], "").total_bytes is None


# ---- the index


def pulled(home: Path, alias: str = "hf.co/ns/a", name: str = "a.gguf", **values: Any) -> PulledModel:
    folder = home / "hf.co" / "ns" / alias.rpartition("/")[2]
    return PulledModel(
        **{
            "alias": alias,
            "source": "hf://ns/a",
            "folder": folder,
            "path": folder / name,
            "pulled_at_s": 5.0,
            **values,
        }
    )


def test_the_index_can_be_moved_with_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "one"
    first, second = (
        pulled(home),
        pulled(home, "hf.co/ns/b", "x/b.gguf", mmproj_path=home / "hf.co" / "ns" / "b" / "mmproj.gguf"),
    )
    assert read_pulled(home) == ([], "")
    add_pulled(home, first)
    add_pulled(home, second)
    assert read_pulled(home) == ([first, second], "")
    home.rename(tmp_path / "two")
    assert [one.path for one in read_pulled(tmp_path / "two")[0]] == [
        tmp_path / "two/hf.co/ns/a/a.gguf",
        tmp_path / "two/hf.co/ns/b/x/b.gguf",
    ]
    remove_pulled(tmp_path / "two", "hf.co/ns/a")
    remove_pulled(tmp_path / "two", "nobody")
    assert [one.alias for one in read_pulled(tmp_path / "two")[0]] == ["hf.co/ns/b"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"models": 3}', '{"models": {"a": 3}}', '{"models": {"a": {"folder": "a"}}}', "no json"],
)
def test_damaged_index_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    found, said = read_pulled(tmp_path)
    assert found == []
    assert "is damaged" in said
    catalogue, problems = read_catalogue(ModelSettings(), None, tmp_path)
    assert (catalogue.models, [(p.variable, p.is_fatal) for p in problems]) == ({}, [("DOWNLOAD_DIR", False)])


@pytest.mark.parametrize(
    "row",
    [
        '"folder": "a", "path": "../../etc/passwd"',
        '"folder": "..", "path": "a/x.gguf"',
        '"folder": "/etc", "path": "a"',
        '"folder": ".", "path": "a"',
    ],
)
def test_row_that_points_outside_the_folder_is_ignored(tmp_path: Path, row: str) -> None:
    (tmp_path / INDEX).write_text(f'{{"models": {{"a": {{"source": "s", "pulled_at_s": 1, {row}}}}}}}')
    assert read_pulled(tmp_path) == ([], "")


# ---- the table


def put(home: Path, model: PulledModel) -> None:
    for path in filter(None, (model.path, model.mmproj_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
    add_pulled(home, model)


def test_pulled_models_are_listed_by_their_pull_name(tmp_path: Path) -> None:
    model = pulled(tmp_path, mmproj_path=tmp_path / "hf.co" / "ns" / "a" / "mmproj.gguf")
    put(tmp_path, model)
    settings = ModelSettings(llama_server_path=Path(sys.executable))
    catalogue, problems = read_catalogue(settings, None, tmp_path)
    assert problems == []
    found = catalogue.models["hf.co/ns/a"]
    assert (found.path, found.mmproj_path, found.origin, found.params.n_ctx) == (
        model.path,
        model.mmproj_path,
        "pulled",
        4096,
    )


def test_a_pulled_file_is_listed_once_in_a_shared_folder(tmp_path: Path) -> None:
    put(tmp_path, pulled(tmp_path))
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    catalogue, _ = read_catalogue(
        ModelSettings(llama_server_path=Path(sys.executable), model_dir=tmp_path), None, tmp_path
    )
    assert sorted(catalogue.models) == ["hf.co/ns/a", "own"]


def test_pulled_model_without_its_file_is_a_warning(tmp_path: Path) -> None:
    add_pulled(tmp_path, pulled(tmp_path))
    _, problems = read_catalogue(ModelSettings(llama_server_path=Path(sys.executable)), None, tmp_path)
    assert [(p.variable, p.is_fatal, "Pull the model again, or delete it" in p.remedy) for p in problems] == [
        ("DOWNLOAD_DIR", False, True)
    ]


def test_pulled_models_without_a_server_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "state" / "models", pulled(tmp_path / "state" / "models"))
    monkeypatch.setenv("PATH", "/nowhere")
    settings, problems = load({"STATE_DIR": str(tmp_path / "state")})
    assert settings is not None
    assert settings.catalogue.models == {}
    assert [p.variable for p in problems if "llama" in p.remedy] == ["LLAMA_SERVER_PATH"]
    settings, _ = load({"STATE_DIR": str(tmp_path / "state"), "LLAMA_SERVER_PATH": sys.executable})
    assert settings is not None
    assert list(settings.catalogue.models) == ["hf.co/ns/a"]


# ---- what a pull fetched, and what is deleted


class Harness:
    """Pulled models in a folder, and downloads by script."""

    def __init__(self, home: Path, tasks: Tasks) -> None:
        self.happened: list[str] = []
        self.downloader = StandinDownloader()
        clock = FakeClock()
        self.models = PulledModels(home, clock=clock, on_change=self._changed)
        self.jobs = DownloadJobs(
            self.downloader, tasks=tasks, clock=clock, on_fetched=self.models.add_fetched
        )
        self.pulls = Pulls(self.jobs, self.models, lister=self._list, eject=self._eject)

    async def _changed(self) -> None:
        self.happened.append("changed")

    async def _eject(self, alias: str) -> None:
        self.happened.append(f"eject {alias}")

    async def _list(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]:
        if source.endswith("closed"):
            raise Forbidden("ns/closed is gated.")
        return [SourceOffer("m.gguf", 5, "ab")]


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Harness]:
    async with Tasks() as tasks:
        harness = Harness(home, tasks)
        yield harness
        await harness.jobs.close()


def wanted(name: str) -> PullName:
    found = parse_pull_name(name)
    assert found is not None
    return found


async def test_listing_failure_has_ollamas_error_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as harness:
        with pytest.raises(Forbidden) as caught:
            await harness.pulls.find_files(wanted("hf.co/ns/closed"))
        assert caught.value.message == "pull model manifest: ns/closed is gated."


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no model", "m.gguf was downloaded, but is not a GGUF model: it has only 8 bytes"),
        (None, "m.gguf was downloaded, but is not a GGUF model: No such file or directory"),
    ],
)
async def test_a_file_that_is_no_model_fails_the_pull(
    tmp_path: Path, content: bytes | None, text: str
) -> None:
    async with opened(tmp_path) as harness:
        harness.downloader.at_once = True
        harness.downloader.writes = {"m.gguf": content} if content is not None else {}
        name = wanted("hf.co/ns/a")
        job = await harness.pulls.start(name, await harness.pulls.find_files(name))
        with pytest.raises(Invalid, match=text) as caught:
            await harness.jobs.wait(job.id)
        assert (caught.value.code, harness.happened, read_pulled(tmp_path)[0]) == ("not_gguf", [], [])


async def test_a_projector_alone_is_no_model(tmp_path: Path, tiny_models: Path) -> None:
    async with opened(tmp_path) as harness:
        harness.downloader.at_once = True
        harness.downloader.writes = {"m.gguf": (tiny_models / "tiny-lora.gguf").read_bytes()}
        name = wanted("hf.co/ns/a")
        job = await harness.pulls.start(name, await harness.pulls.find_files(name))
        with pytest.raises(Invalid, match=r"m.gguf is not a model, but a file of type 'adapter'"):
            await harness.jobs.wait(job.id)


async def test_only_a_pulled_model_that_is_not_being_pulled_is_deleted(tmp_path: Path) -> None:
    put(tmp_path, pulled(tmp_path))
    async with opened(tmp_path) as harness:
        with pytest.raises(NoSuchModel, match="model 'nobody' not found"):
            await harness.pulls.delete("nobody")
        name = wanted("hf.co/ns/a")
        folder = read_pulled(tmp_path)[0][0].folder
        request = DownloadRequest(name.source, folder, config={"include": "m.gguf"})
        job = await harness.jobs.start(request, model=name.alias)
        with pytest.raises(Conflict, match=r"hf.co/ns/a:latest is being pulled. Cancel that download"):
            await harness.pulls.delete("hf.co/ns/a:latest")
        await harness.jobs.cancel(job.id)
        await harness.pulls.delete("hf.co/ns/a:latest")
        assert (harness.happened, read_pulled(tmp_path)[0]) == (["eject hf.co/ns/a", "changed"], [])
        assert not folder.exists()


@pytest.mark.parametrize(
    ("offer", "digest"),
    [
        (SourceOffer("m.gguf", 5, "ab"), "ab"),
        (SourceOffer("m.gguf", 5), hashlib.sha256(b"hf://ns/a/m.gguf").hexdigest()),
    ],
)
def test_a_digest_is_the_files_or_of_its_name(offer: SourceOffer, digest: str) -> None:
    assert pull_digest(wanted("hf.co/ns/a"), PullFiles((offer,))) == digest
