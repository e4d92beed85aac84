"""Ollama's names for models on Hugging Face, `hf.co/ns/repo:Q4_K_M`, and the files that they mean. Pure.

Source: Ollama, names with a host; Hugging Face, "Use Ollama with any GGUF Model": the tag is a quantisation
or a file's name, and without one Q4_K_M is taken if there is one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from appliance.base.errors import Invalid, NotFound
from appliance.downloads.contract import SourceOffer
from appliance.models.table.gguf_files import PART

HOSTS = ("hf.co", "huggingface.co")
PREFERRED = "Q4_K_M"
MAX_NAMED = 20
_PIECE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"(?P<repository>{_PIECE}/{_PIECE})(?::(?P<tag>[A-Za-z0-9][A-Za-z0-9._+-]{{0,127}}))?")
_HEAD = re.compile(
    rf"(?:https?://)?(?P<host>{'|'.join(map(re.escape, HOSTS))})/|(?P<scheme>hf)://", re.IGNORECASE
)
# In a path: it would be read as a pattern, or leave the folder.
_UNSAFE_PATH = re.compile(r"[*?\[\],]|\.\.|^/")


@dataclass(frozen=True, slots=True)
class PullName:
    """A name that can be pulled.

    Attributes:
        alias: The name under which the model is to serve: as it was written, without `:latest`.
        repository: namespace/repository.
        tag: "" = none.
        folder: Its place below the folder of downloads.
    """

    alias: str
    repository: str
    tag: str
    folder: PurePosixPath

    @property
    def source(self) -> str:
        """The source of a download."""
        return f"hf://{self.repository}"


def parse_pull_name(name: str) -> PullName | None:
    """Parse a name; None = it does not name a model on Hugging Face.

    Raises:
        Invalid: It begins like one and is none.
    """
    head = _HEAD.match(name)
    if head is None:
        return None
    found = _NAME.fullmatch(name[head.end() :].removesuffix("/"))
    if found is None or ".." in name:
        raise Invalid("invalid model name", param="model", code="invalid_model_name")
    tag = found["tag"] or ""
    tag = "" if tag.lower() == "latest" else tag
    host = (head["host"] or head["scheme"]).lower()
    alias = f"{host}/{found['repository']}" if head["host"] else f"hf://{found['repository']}"
    return PullName(
        f"{alias}:{tag}" if tag else alias,
        found["repository"],
        tag,
        PurePosixPath(host, found["repository"], tag or "latest"),
    )


@dataclass(frozen=True, slots=True)
class PullFiles:
    """The files that a name means: the model's (parts in order), and its projector if there is one."""

    model: tuple[SourceOffer, ...]
    projector: SourceOffer | None = None

    @property
    def files(self) -> tuple[SourceOffer, ...]:
        """All files."""
        return (*self.model, self.projector) if self.projector else self.model

    @property
    def total_bytes(self) -> int | None:
        """Their size together; None = the source does not say."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


def choose_files(offered: Iterable[SourceOffer], tag: str) -> PullFiles:
    """Choose the files that a tag means.

    1. the file with exactly this name
    2. the one whose name contains it as a word; the shortest such name
    3. no tag: Q4_K_M, else the smallest file

    Args:
        offered: All files of the repository.
        tag: "" = none.

    Raises:
        Invalid: There is no GGUF file.
        NotFound: No file matches the tag.
    """
    groups = _group_parts(offered)
    models = {
        stem: files
        for stem, files in groups.items()
        if not PurePosixPath(stem).name.lower().startswith(("mmproj", "imatrix"))
    }
    if not models:
        raise Invalid(
            "Repository is not GGUF or is not compatible with llama.cpp", param="model", code="not_gguf"
        )
    found = _find_tag(models, tag or PREFERRED)
    if found is None and not tag:  # 3
        found = min(models, key=lambda stem: (_size_bytes(models[stem]), stem))
    if found is None:
        names = ", ".join(sorted(PurePosixPath(stem).name for stem in models)[:MAX_NAMED])
        raise NotFound(
            f"The specified tag is not available in the repository: {tag}. It has {names}.",
            param="model",
            code="no_such_tag",
        )
    projectors = {
        stem: files for stem, files in groups.items() if PurePosixPath(stem).name.lower().startswith("mmproj")
    }
    return PullFiles(tuple(models[found]), _choose_projector(projectors))


def _group_parts(offered: Iterable[SourceOffer]) -> dict[str, list[SourceOffer]]:
    """Return the GGUF files by their path without ending and part number; only complete sets of parts."""
    groups: dict[str, list[SourceOffer]] = {}
    counts: dict[str, int] = {}
    for file in sorted(offered, key=lambda one: one.path):
        if not file.path.lower().endswith(".gguf") or _UNSAFE_PATH.search(file.path):
            continue
        part = PART.fullmatch(file.path)
        stem = part["stem"] if part else file.path[: -len(".gguf")]
        groups.setdefault(stem, []).append(file)
        counts[stem] = int(part["count"]) if part else 1
    return {stem: files for stem, files in groups.items() if len(files) == counts[stem]}


def _find_tag(models: dict[str, list[SourceOffer]], tag: str) -> str | None:
    wanted = tag.lower().removesuffix(".gguf")
    exact = [stem for stem in models if PurePosixPath(stem).name.lower() == wanted]  # 1
    word = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])")
    worded = [stem for stem in models if word.search(stem.lower())]  # 2
    return min(exact or worded, key=lambda stem: (len(stem), stem), default=None)


def _choose_projector(projectors: dict[str, list[SourceOffer]]) -> SourceOffer | None:
    """Choose a projector: half precision, which every llama-server takes, else the smallest."""
    stem = _find_tag(projectors, "f16") or min(
        projectors, key=lambda one: (_size_bytes(projectors[one]), one), default=None
    )
    return projectors[stem][0] if stem else None


def _size_bytes(files: Sequence[SourceOffer]) -> int:
    return sum(file.size_bytes or 0 for file in files)
