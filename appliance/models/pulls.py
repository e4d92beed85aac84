"""Pulling: a name of Ollama's becomes a download job, and what it fetched becomes a model of the table.

A pull is a job like any other; that its file is to serve as a model stands in the job, so that one taken up after a restart ends as well.
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


class Pulls:
    """Takes the jobs' `on_fetched`.

    Takes   home: the folder of downloads, absolute; lister: what a repository has; eject: unloads a model by its name if it is loaded;
            on_change: lets the table of models be read again; config: what goes along with each wish (an endpoint, never kept)
    """

    def __init__(
        self,
        jobs: DownloadJobs,
        *,
        home: Path,
        lister: SourceLister,
        clock: Clock,
        eject: Callable[[str], Awaitable[None]],
        on_change: Callable[[], Awaitable[None]],
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.jobs = jobs
        self._home = home
        self._lister = lister
        self._clock = clock
        self._eject = eject
        self._on_change = on_change
        self._config = dict(config or {})
        self._writing = asyncio.Lock()
        jobs.on_fetched = self._fetched

    async def find(self, name: PullName) -> PullFiles:
        """Give the files that a name means. Raises as Ollama says it: `pull model manifest: …`."""
        try:
            return choose_files(await self._lister(name.source, self._config), name.tag)
        except ApplianceError as error:
            found = copy.copy(error)
            found.message = f"pull model manifest: {error.message}"
            raise found from None

    async def start(self, name: PullName, choice: PullFiles) -> DownloadJob:
        """Begin to fetch the files of a name, or join who does already. Raises what Jobs.start raises."""
        folder = self._home.joinpath(name.folder)
        config = {**self._config, "include": ",".join(file.path for file in choice.files)}
        return await self.jobs.start(
            DownloadRequest(name.source, folder, config=config), model=name.alias, is_kept=False
        )

    async def _fetched(self, job: DownloadJob) -> None:
        """Put what a pull fetched into the index, and let it serve."""
        if not job.model:
            return
        first, *others = job.config["include"].split(",")
        projector = next((name for name in others if Path(name).name.lower().startswith("mmproj")), None)
        path = job.output_dir / first
        await asyncio.to_thread(_check, path)
        model = PulledModel(
            job.model,
            job.source,
            job.output_dir,
            path,
            job.output_dir / projector if projector else None,
            self._clock.now_s(),
        )
        async with self._writing:
            await asyncio.to_thread(add_pulled, self._home, model)
        await self._on_change()
        log.info("model_pulled", model=job.model, path=str(path))

    async def delete(self, alias: str) -> None:
        """Unload a pulled model, take it out of the table, and remove its files.

        Raises  NoSuchModel: nothing was pulled by that name · Conflict: it is being pulled
        """
        found = await self.known(alias)
        if found is None:
            raise NoSuchModel(f"model '{alias}' not found", param="model")
        if any(job.is_active and job.output_dir == found.folder for job in self.jobs.all()):
            raise Conflict(f"{alias} is being pulled; cancel that first.", code="download_runs")
        await self._eject(found.alias)
        async with self._writing:
            await asyncio.to_thread(remove_pulled, self._home, found.alias)
        await self._on_change()
        await asyncio.to_thread(_remove, found.folder, self._home)
        log.info("model_deleted", model=found.alias, path=str(found.path))

    async def known(self, alias: str) -> PulledModel | None:
        """Give a pulled model by the name it was pulled by, with or without `:latest`."""
        rows, _ = await asyncio.to_thread(read_pulled, self._home)
        return next((row for row in rows if row.alias in {alias, alias.removesuffix(":latest")}), None)


def pull_digest(name: PullName, choice: PullFiles) -> str:
    """Give the SHA-256 of the model's file in hex; where it is not told, one of its name, for clients tell files apart by it."""
    first = choice.model[0]
    return first.sha256 or hashlib.sha256(f"{name.source}/{first.path}".encode()).hexdigest()


def _check(path: Path) -> None:
    """Raise Invalid where a file is not a model that can be run (blocks)."""
    try:
        header = read_header(path, is_brief=True)
    except (OSError, InvalidGguf) as exc:
        reason = (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else str(exc)
        raise Invalid(f"{path.name} was fetched, but is no GGUF model: {reason}.", code="not_gguf") from None
    if header.kind != "model":
        raise Invalid(f"{path.name} is no model by itself, but of the kind {header.kind!r}.", code="not_gguf")


def _remove(folder: Path, home: Path) -> None:
    """Remove a folder and the empty ones above it, up to `home` (blocks)."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if parent == home or home not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:  # another model lies there
            return
