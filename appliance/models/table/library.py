"""Facts about models, kept as long as their files stay as they are (path, size, time of change).

Files are read in threads. A caller waits for a header, and for a digest (digests.py) only a short time.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.base.errors import NoSuchModel, Unavailable
from appliance.base.tasks import Tasks
from appliance.models.table.catalogue import Model
from appliance.models.table.details import ModelDetails, gather_details
from appliance.models.table.digests import DigestCache
from appliance.models.table.entries import Params
from appliance.models.table.file_state import FileState
from appliance.models.table.gguf import InvalidGguf, read_header, read_tensors
from appliance.models.table.gguf_files import gguf_parts

DIGEST_WAIT_S = 2.0  # of one call; enough for about 3 GB
EVERYTHING = 1 << 40  # elements: longer than any list


@dataclass(frozen=True, slots=True)
class _Kept:
    files: tuple[FileState, ...]
    params: Params
    details: ModelDetails


class ModelLibrary:
    """Facts about the table's models.

    Args:
        models: Returns the table as it is at the moment.
        tasks: In which digests are computed.
        digests_path: Where those are kept, None = in memory only.
        digest_wait_s: How long a call waits for digests.
    """

    def __init__(
        self,
        models: Callable[[], Mapping[str, Model]],
        *,
        tasks: Tasks,
        digests_path: Path | None = None,
        digest_wait_s: float = DIGEST_WAIT_S,
    ) -> None:
        self._models = models
        self._digests = DigestCache(digests_path, tasks=tasks)
        self._digest_wait_s = digest_wait_s
        self._kept: dict[str, _Kept] = {}

    async def details(self, alias: str) -> ModelDetails:
        """Return one model's facts.

        Raises:
            NoSuchModel: The table has no such model.
            Unavailable: It has no file, or that cannot be read, or is not GGUF.
        """
        model = self._model_with_file(alias)
        try:
            kept = self._kept[alias] = await asyncio.to_thread(_look, model, self._kept.get(alias))
        except (OSError, InvalidGguf) as exc:
            raise _unreadable(alias, exc) from None
        return (await self._with_digests([kept]))[0]

    async def every(self, aliases: Iterable[str], *, needs_digests: bool = True) -> dict[str, ModelDetails]:
        """Return the facts of some models by alias; unknown and unreadable ones are left out.

        Args:
            aliases: Their names.
            needs_digests: Whether to compute the files' digests, and to wait a moment for them.
        """
        table = self._models()
        models = [table[alias] for alias in aliases if alias in table]
        found = await asyncio.to_thread(
            _look_at_each, [model for model in models if model.path is not None], dict(self._kept)
        )
        self._kept |= found
        if not needs_digests:
            return {alias: kept.details for alias, kept in found.items()}
        return {one.alias: one for one in await self._with_digests(list(found.values()))}

    async def lists(self, alias: str) -> dict[str, list[Any]]:
        """Return the lists of one model's header, vocabularies too (some megabytes, read anew at each call).

        Raises:
            NoSuchModel: The table has no such model.
            Unavailable: Its file cannot be read, or is not GGUF.
        """
        model = self._model_with_file(alias)
        assert model.path is not None
        try:
            header = await asyncio.to_thread(read_header, model.path, max_kept=EVERYTHING)
        except (OSError, InvalidGguf) as exc:
            raise _unreadable(alias, exc) from None
        return {key: value for key, value in header.values.items() if isinstance(value, list)}

    def _model_with_file(self, alias: str) -> Model:
        found = self._models().get(alias)
        if found is None:
            raise NoSuchModel(f"The model {alias[:200]!r} does not exist here.", param="model")
        if found.path is None:
            raise Unavailable(
                f"The model {alias!r} runs by a command: the table names no file of it (`model_path`).",
                code="model_unreadable",
                details={"model": alias},
            )
        return found

    async def _with_digests(self, found: list[_Kept]) -> list[ModelDetails]:
        await self._digests.want([kept.files for kept in found], wait_s=self._digest_wait_s)
        return [replace(kept.details, digest=self._digests.known(kept.files)) for kept in found]


def _look_at_each(models: list[Model], kept: Mapping[str, _Kept]) -> dict[str, _Kept]:
    found = {}
    for model in models:
        try:
            found[model.alias] = _look(model, kept.get(model.alias))
        except (OSError, InvalidGguf):  # `details` of this model says why
            continue
    return found


def _look(model: Model, kept: _Kept | None) -> _Kept:
    """Return a model's facts, from `kept` if its files have not changed. Raises OSError, InvalidGguf."""
    assert model.path is not None
    files = tuple(FileState.read(path) for path in gguf_parts(model.path))
    if kept is not None and kept.files == files and kept.params == model.params:
        return kept
    details = gather_details(
        model.alias,
        read_header(model.path),
        model.params,
        size_bytes=sum(file.size_bytes for file in files),
        modified_s=max(file.modified_ns for file in files) / 1e9,
        counted=_count(files),
    )
    return _Kept(files, model.params, details)


def _count(files: Iterable[FileState]) -> int:
    """Count the parameters in all parts; 0 = the list of tensors is damaged."""
    try:
        return sum(read_tensors(file.path).parameters for file in files)
    except (OSError, InvalidGguf):
        return 0


def _unreadable(alias: str, exc: OSError | InvalidGguf) -> Unavailable:
    reason = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
    return Unavailable(
        f"The file of the model {alias!r} cannot be read: {reason}.",
        code="model_unreadable",
        details={"model": alias},
    )
