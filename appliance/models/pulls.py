"""Pulls: a name in Ollama's form becomes a download job, and its files become a model of the table.

A pull is a job like any other. `DownloadJob.model` says that its file is to serve as a model, so that a pull
that is resumed after a restart is added to the table as well.
"""

import asyncio
import copy
import hashlib
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, Conflict, Invalid, NoSuchModel
from appliance.base.logs import get_logger
from appliance.downloads.contract import DownloadRequest, SourceLister
from appliance.downloads.job import DownloadJob
from appliance.downloads.jobs import DownloadJobs
from appliance.models.pull_name import PullFiles, PullName, choose_files
from appliance.models.table.gguf import InvalidGguf, read_header
from appliance.models.table.pulled import PulledModel, add_pulled, read_pulled, remove_pulled

log = get_logger("downloads")


class PulledModels:
    """The index of pulled models, changed by one writer at a time.

    Args:
        home: The folder of downloads, absolute.
        on_change: Lets the model table be read again.
    """

    def __init__(self, home: Path, *, clock: Clock, on_change: Callable[[], Awaitable[None]]) -> None:
        self.home = home
        self._clock = clock
        self._on_change = on_change
        self._writing = asyncio.Lock()

    async def find(self, alias: str) -> PulledModel | None:
        """Return a pulled model by the name it was pulled by, with or without `:latest`."""
        rows, _ = await asyncio.to_thread(read_pulled, self.home)
        return next((row for row in rows if row.alias in {alias, alias.removesuffix(":latest")}), None)

    async def add_fetched(self, job: DownloadJob) -> None:
        """Add what a pull fetched to the index and the table. Other downloads are ignored.

        Raises:
            Invalid: The file is not a model that can be run.
        """
        if not job.model:
            return
        first, *others = job.config["include"].split(",")
        projector = next((name for name in others if Path(name).name.lower().startswith("mmproj")), None)
        path = job.output_dir / first
        await asyncio.to_thread(_check_model, path)
        model = PulledModel(
            job.model,
            job.source,
            job.output_dir,
            path,
            job.output_dir / projector if projector else None,
            self._clock.now_s(),
        )
        async with self._writing:
            await asyncio.to_thread(add_pulled, self.home, model)
        await self._on_change()
        log.info("model_pulled", model=job.model, path=str(path))

    async def remove(self, model: PulledModel) -> None:
        """Take a model out of the index and the table, and remove its files."""
        async with self._writing:
            await asyncio.to_thread(remove_pulled, self.home, model.alias)
        await self._on_change()
        await asyncio.to_thread(_remove_folder, model.folder, self.home)
        log.info("model_deleted", model=model.alias, path=str(model.path))


class Pulls:
    """Begins pulls, and deletes pulled models.

    Args:
        jobs: Its `on_fetched` must be `models.add_fetched`.
        lister: Lists what a repository has.
        eject: Unloads a model by its name, if it is loaded.
        config: Added to each request (an endpoint, for tests).
    """

    def __init__(
        self,
        jobs: DownloadJobs,
        models: PulledModels,
        *,
        lister: SourceLister,
        eject: Callable[[str], Awaitable[None]],
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.jobs = jobs
        self._models = models
        self._lister = lister
        self._eject = eject
        self._config = dict(config or {})

    async def find_files(self, name: PullName) -> PullFiles:
        """Return the files that a name means.

        Raises:
            ApplianceError: With Ollama's text: `pull model manifest: …`.
        """
        try:
            return choose_files(await self._lister(name.source, self._config), name.tag)
        except ApplianceError as error:
            found = copy.copy(error)
            found.message = f"pull model manifest: {error.message}"
            raise found from None

    async def start(self, name: PullName, files: PullFiles) -> DownloadJob:
        """Begin to fetch the files of a name, or join. Raises what `DownloadJobs.start` raises."""
        folder = self._models.home.joinpath(name.folder)
        config = {**self._config, "include": ",".join(file.path for file in files.files)}
        return await self.jobs.start(
            DownloadRequest(name.source, folder, config=config), model=name.alias, is_detached=False
        )

    async def delete(self, alias: str) -> None:
        """Unload a pulled model, take it out of the table, and remove its files.

        Raises:
            NoSuchModel: No model was pulled by that name.
            Conflict: It is being pulled.
        """
        found = await self._models.find(alias)
        if found is None:
            raise NoSuchModel(f"model '{alias}' not found", param="model")
        if any(job.is_active and job.output_dir == found.folder for job in self.jobs.all()):
            raise Conflict(f"{alias} is being pulled. Cancel that download first.", code="download_runs")
        await self._eject(found.alias)
        await self._models.remove(found)


def pull_digest(name: PullName, files: PullFiles) -> str:
    """Return the SHA-256 of the model's file in hex, or of its name if the source does not say it.

    Clients tell files apart by it.
    """
    first = files.model[0]
    return first.sha256 or hashlib.sha256(f"{name.source}/{first.path}".encode()).hexdigest()


def _check_model(path: Path) -> None:
    """Raise Invalid if a file is not a model that can be run (blocks)."""
    try:
        header = read_header(path, is_brief=True)
    except (OSError, InvalidGguf) as exc:
        reason = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
        raise Invalid(
            f"{path.name} was downloaded, but is not a GGUF model: {reason}.", code="not_gguf"
        ) from None
    if header.kind != "model":
        raise Invalid(f"{path.name} is not a model, but a file of type {header.kind!r}.", code="not_gguf")


def _remove_folder(folder: Path, home: Path) -> None:
    """Remove a folder and the empty ones above it, up to `home` (blocks)."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if parent == home or home not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # another model is there
            return
