"""The models' files, looked at as little as can be: facts by alias, kept as long as the file stays as it is (path, size, time of change).

All reading is done in threads; who asks waits for a header, never for a digest (digests.py).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.base.errors import NoSuchModel, Unavailable
from appliance.base.tasks import Tasks
from appliance.models.table.catalogue import Model, Params
from appliance.models.table.details import ModelDetails, gather_details
from appliance.models.table.digests import DigestCache, FileState
from appliance.models.table.gguf import InvalidGguf, count_parameters, gguf_parts, read_header

PATIENCE_S = 2.0  # that one question waits for digests: some 3 GB
EVERYTHING = 1 << 40  # elements: longer than any list


@dataclass(frozen=True, slots=True)
class _Kept:
    files: tuple[FileState, ...]
    params: Params
    details: ModelDetails


class ModelLibrary:
    """Facts about the table's models.

    Takes   models: gives the table as it is at the moment; tasks: in which digests are reckoned;
            digests_path: where those are kept, None = only in memory; patience_s: how long a question waits for digests
    """

    def __init__(
        self,
        models: Callable[[], Mapping[str, Model]],
        *,
        tasks: Tasks,
        digests_path: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._models = models
        self._digests = DigestCache(digests_path, tasks=tasks)
        self._patience_s = patience_s
        self._kept: dict[str, _Kept] = {}

    async def details(self, alias: str) -> ModelDetails:
        """Give one model's facts.

        Raises  NoSuchModel · Unavailable: its file cannot be read, or is none
        """
        model = self._model(alias)
        try:
            kept = self._kept[alias] = await asyncio.to_thread(_look, model, self._kept.get(alias))
        except (OSError, InvalidGguf) as exc:
            raise _unreadable(alias, exc) from None
        return (await self._with_digests([kept]))[0]

    async def every(self, aliases: Iterable[str]) -> dict[str, ModelDetails]:
        """Give the facts of some models at once; those whose files cannot be read, or that are not in the table, are left out."""
        table = self._models()
        found = await asyncio.to_thread(
            _look_at_each, [table[alias] for alias in aliases if alias in table], dict(self._kept)
        )
        self._kept |= found
        return {one.alias: one for one in await self._with_digests(list(found.values()))}

    async def lists(self, alias: str) -> dict[str, list[Any]]:
        """Give the lists of one model's header, vocabularies too (some megabytes, read anew at each call).

        Raises  NoSuchModel · Unavailable
        """
        model = self._model(alias)
        try:
            header = await asyncio.to_thread(read_header, model.path, most_kept=EVERYTHING)
        except (OSError, InvalidGguf) as exc:
            raise _unreadable(alias, exc) from None
        return {key: value for key, value in header.values.items() if isinstance(value, list)}

    def _model(self, alias: str) -> Model:
        found = self._models().get(alias)
        if found is None:
            raise NoSuchModel(f"The model {alias[:200]!r} does not exist here.", param="model")
        return found

    async def _with_digests(self, found: list[_Kept]) -> list[ModelDetails]:
        await self._digests.want([kept.files for kept in found], wait_s=self._patience_s)
        return [replace(kept.details, digest=self._digests.known(kept.files)) for kept in found]


def _look_at_each(models: list[Model], kept: Mapping[str, _Kept]) -> dict[str, _Kept]:
    found = {}
    for model in models:
        try:
            found[model.alias] = _look(model, kept.get(model.alias))
        except (OSError, InvalidGguf):  # who asks for this one alone is told why
            continue
    return found


def _look(model: Model, kept: _Kept | None) -> _Kept:
    """Give a model's facts, from `kept` if its files are the same still. Raises OSError, BadGguf."""
    files = tuple(FileState.look(path) for path in gguf_parts(model.path))
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
    """Count the parameters in all parts; 0 = the list of tensors is damaged, which does not matter for the rest."""
    try:
        return sum(count_parameters(file.path) for file in files)
    except (OSError, InvalidGguf):
        return 0


def _unreadable(alias: str, exc: OSError | InvalidGguf) -> Unavailable:
    reason = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
    return Unavailable(
        f"The file of the model {alias!r} cannot be read: {reason}.",
        code="model_unreadable",
        details={"model": alias},
    )
