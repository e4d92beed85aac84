"""A folder of model files as a table: which of its files are models, and what they are called (MODEL_DIR).

1. A file is a model by its name without the ending; one in parts (`…-00001-of-00003`) is one model, by the name without that.
2. Of files with the same name, those in sub-folders are called `sub-folder/name`.
3. `mmproj*.gguf`, and what says of itself that it is one, is a projector for images: that of all models in its sub-folder that write text.
   With a second one beside it, or among several models in the folder itself, nobody can tell whose it is: it is left out, and told of.
4. Adapters and other files that are no models by their own word are left out.
5. A file that cannot be read or is no GGUF file is a model all the same: whoever asks for it is told why it does not load.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.base.settings import Problem
from appliance.models.table.gguf import GgufHeader, InvalidGguf, gguf_parts, gguf_stem, read_header


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model of the folder. Paths are absolute."""

    alias: str
    path: Path
    mmproj_path: Path | None = None


def scan_folder(folder: Path) -> tuple[list[FoundModel], list[Problem]]:
    """Look through a folder and all below it, but for hidden ones.

    Gives   (models in the order of their paths, warnings)
    """
    top = folder.absolute()
    problems: list[Problem] = []
    headers = {path: _look(path, problems) for path in _firsts(top)}
    projectors = [
        path
        for path, header in headers.items()
        if path.name.lower().startswith("mmproj") or (header and header.kind == "mmproj")
    ]
    models = [
        path
        for path, header in headers.items()
        if path not in projectors and (header is None or header.kind == "model")
    ]
    texts = [path for path in models if (header := headers[path]) is None or not header.is_embedding]
    owned = _projectors(top, projectors, texts, problems)
    return [
        FoundModel(alias, path, owned.get(path.parent) if path in texts else None)
        for alias, path in _names(top, models).items()
    ], problems


def _firsts(top: Path) -> list[Path]:
    """List all model files; of those in parts the first, there or not."""
    found = (
        path
        for path in top.rglob("*")
        if path.suffix.lower() == ".gguf"
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
    )
    return sorted({gguf_parts(path)[0] for path in found})


def _look(path: Path, problems: list[Problem]) -> GgufHeader | None:
    """Read what says what the file is, not its vocabulary, which is most of it."""
    missing = [part.name for part in gguf_parts(path) if not part.is_file()]
    header, said = None, f"It is not whole: there is no {', '.join(missing)}"
    if not missing:
        try:
            header, said = read_header(path, is_brief=True), ""
        except OSError as exc:
            said = f"It cannot be read: {exc.strerror or exc}"
        except InvalidGguf as exc:
            said = f"It is no model: {exc}"
    if said:
        problems.append(_warning(path, f"{said}. It is listed, but cannot be loaded."))
    return header


def _projectors(
    top: Path, projectors: list[Path], models: list[Path], problems: list[Problem]
) -> dict[Path, Path]:
    """Give the projector of each folder's models."""
    owned = {}
    for folder in dict.fromkeys(path.parent for path in projectors):
        here = [path for path in projectors if path.parent == folder]
        if len(here) > 1:
            problems.append(
                _warning(
                    folder,
                    f"It holds {len(here)} projectors, so none is used: {', '.join(path.name for path in here)}. Leave one, "
                    "or name one as `mmproj_path` in the file of CONFIG_PATH.",
                )
            )
        elif folder == top and sum(path.parent == top for path in models) > 1:
            problems.append(
                _warning(
                    here[0],
                    "Among several models nobody can tell whose projector it is: it is not used. Put it into a "
                    "sub-folder with its model, or name it as `mmproj_path` in the file of CONFIG_PATH.",
                )
            )
        else:
            owned[folder] = here[0]
    return owned


def _names(top: Path, models: Iterable[Path]) -> dict[str, Path]:
    """Name every model; llama-server takes a comma for the end of a name, so there is none in them."""
    stems = {path: gguf_stem(path) for path in models}
    often = Counter(stems.values())
    named: dict[str, Path] = {}
    for path, stem in stems.items():
        alias = (path.parent.relative_to(top) / stem).as_posix() if often[stem] > 1 else stem
        if alias.replace(",", "_") in named:  # a.gguf beside a.GGUF, or beside a-00001-of-00002.gguf
            alias = path.relative_to(top).as_posix()
        named[alias.replace(",", "_")] = path
    return named


def _warning(path: Path, said: str) -> Problem:
    return Problem("MODEL_DIR", str(path), "model files (.gguf)", said, is_fatal=False)
