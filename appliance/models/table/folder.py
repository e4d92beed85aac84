"""A folder of model files as a table: which of its files are models, and their names (MODEL_DIR).

1. A file is a model, named by its file name without the ending. A model in parts (`…-00001-of-00003`) is one
   model, named without that suffix.
2. Of files with the same name, those in sub-folders are named `sub-folder/name`.
3. A file whose header says so is a projector for images. It belongs to the text models beside it that have
   its name (`mmproj-NAME-f16.gguf` to `NAME-Q4_K_M.gguf`). One with another name belongs to all others in its
   sub-folder. With a second such beside it, or among several such models in the top folder, it is unclear
   which models it belongs to: it is left out, with a warning. So is `mmproj*.gguf` that is no projector.
4. Adapters, and files whose headers say that they are no models, are left out.
5. A file that cannot be read or is not GGUF is listed as a model: a request for it says why it does not load.
6. What is no file, or has no name that a model can have, is left out with a warning (file_walk.py).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.base.settings import Problem
from appliance.models.table.file_walk import WalkedFolder, shown_path, walk_folder
from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_header
from appliance.models.table.gguf_files import check_split, check_whole, gguf_parts, gguf_stem, missing_parts

MAX_ALIAS = 512  # characters
_WORDS = re.compile(r"[^\W_]+(?:\.[^\W_]+)*")
_NOT_NAMING = re.compile(
    r"(?<![^\W_])(?:mmproj|model|ud|bf16|f16|f32|fp16|fp32|mxfp4|[it]?q\d+(?:_[a-z0-9]+)*)(?![^\W_])"
)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model of the folder. Paths are absolute."""

    alias: str
    path: Path
    mmproj_path: Path | None = None


def scan_folder(folder: Path, walked: WalkedFolder | None = None) -> tuple[list[FoundModel], list[Problem]]:
    """Scan a folder and all below it, except hidden ones.

    Args:
        folder: The folder.
        walked: What is in it; None = it is walked now.

    Returns:
        (models in the order of their paths, warnings)
    """
    top = folder.absolute()
    walked = walked or walk_folder(top)
    problems = [_warning(path, text) for path, text in walked.warnings]
    if walked.left_out:
        problems.append(_warning(top, f"{walked.left_out} more entries cannot be used. They are left out."))
    # Of a model in parts the first, there or not.
    broken: set[Path] = set()
    headers = {
        path: _read_brief(path, problems, broken)
        for path in sorted({gguf_parts(one)[0] for one in walked.files})
    }
    projectors = [
        path for path, header in headers.items() if header and header.kind == "mmproj" and path not in broken
    ]
    models = [
        path
        for path, header in headers.items()
        if not _is_named_projector(path) and (header is None or header.kind == "model")
    ]
    texts = [path for path in models if (header := headers[path]) is None or not header.is_embedding]
    owned = _assign_projectors(top, projectors, texts, problems)
    return [
        FoundModel(alias, path, owned.get(path))
        for alias, path in _name_models(top, models, problems).items()
    ], problems


def _is_named_projector(path: Path) -> bool:
    return path.name.lower().startswith("mmproj")


def _read_brief(path: Path, problems: list[Problem], broken: set[Path]) -> GgufHeader | None:
    """Read the header without its vocabulary, which is most of it; warn of a file that cannot be used.

    A projector must be whole, and one by its header: else llama-server would not load the models beside it.

    Args:
        path: The file.
        problems: Gets the warning.
        broken: Gets the file if it cannot be used.
    """
    missing = missing_parts(path)
    header, why = None, f"It is incomplete: {missing} is missing"
    if not missing:
        try:
            header, why = read_header(path, is_brief=True), ""
            check_split(path, header)
            if header.kind == "mmproj":
                check_whole(path)
        except OSError as exc:
            why = f"It cannot be read: {exc.strerror or exc}"
        except InvalidGguf as exc:
            why = f"It is not a GGUF model: {exc}"
    if not why and header and _is_named_projector(path) and header.kind != "mmproj":
        why = f"It is no projector, as its name says, but of the architecture {header.architecture[:40]!r}"
    is_projector = _is_named_projector(path) or (header is not None and header.kind == "mmproj")
    if why:
        broken.add(path)
        then = "left out; the models beside it run without it" if is_projector else ""
        problems.append(_warning(path, f"{why}. It is {then or 'listed, but cannot be loaded'}."))
    return header


def _assign_projectors(
    top: Path, projectors: list[Path], models: list[Path], problems: list[Problem]
) -> dict[Path, Path]:
    """Return the projector of each text model that has one."""
    owned: dict[Path, Path] = {}
    for folder in dict.fromkeys(path.parent for path in projectors):
        here = [path for path in projectors if path.parent == folder]
        beside = [path for path in models if path.parent == folder]
        names = {name for path in beside if (name := _plain_name(path))}
        for name in names:
            own = [path for path in here if _plain_name(path) == name]
            if len(own) == 1:
                owned |= dict.fromkeys((path for path in beside if _plain_name(path) == name), own[0])
        others = [path for path in here if path not in owned.values()]
        left = [path for path in beside if path not in owned]
        if len(others) > 1:
            named = ", ".join(path.name for path in others)
            problems.append(
                _warning(
                    folder,
                    f"It has {len(others)} projectors: {named}. None is used. "
                    "Leave one, name each as its model, or set `mmproj_path` in the file of CONFIG_PATH.",
                )
            )
        elif others and folder == top and len(left) > 1:
            problems.append(
                _warning(
                    others[0],
                    "The projector is not used: the folder has several models. Name it as its model, put "
                    "both into a sub-folder, or set `mmproj_path` in the file of CONFIG_PATH.",
                )
            )
        elif others:
            owned |= dict.fromkeys(left, others[0])
    return owned


def _plain_name(path: Path) -> str:
    """Return what names the model in a file's name: lower case, without `mmproj` and quantization."""
    words = _NOT_NAMING.sub(" ", gguf_stem(path).lower())
    return "-".join(_WORDS.findall(words))


def _name_models(top: Path, models: Iterable[Path], problems: list[Problem]) -> dict[str, Path]:
    """Name every model, without commas: for llama-server one ends a name."""
    stems = {path: gguf_stem(path) for path in models}
    often = Counter(stems.values())
    named: dict[str, Path] = {}
    for path, stem in stems.items():
        alias = (path.parent.relative_to(top) / stem).as_posix() if often[stem] > 1 else stem
        if alias.replace(",", "_") in named:  # a.gguf beside a.GGUF, or beside a-00001-of-00002.gguf
            alias = path.relative_to(top).as_posix()
        alias = alias.replace(",", "_")
        if len(alias) > MAX_ALIAS or alias in named:
            why = f"longer than {MAX_ALIAS} characters" if len(alias) > MAX_ALIAS else "that of another model"
            problems.append(_warning(path, f"Its name would be {why}. Rename it. It is left out."))
            continue
        named[alias] = path
    return named


def _warning(path: Path | str, text: str) -> Problem:
    return Problem("MODEL_DIR", shown_path(path), "model files (.gguf)", text, is_fatal=False)
