"""An order of an adapter: the request, its progress, and how it is stored for a restart.

Credentials are not stored, only the names of those that came with an order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base.durable_jobs import Job, JobFile
from appliance.downloads.contract import DEFAULT_WORKERS, DownloadProgress, DownloadRequest
from appliance.engines.lora.plan import Adapter

FILE = "lora-orders.json"
TEXTS = ("name", "path", "base_model", "source", "backend")


@dataclass(frozen=True, slots=True)
class AdapterOrder:
    """One adapter that is to be loaded.

    Attributes:
        path: Its folder or file.
        source: Where it is downloaded from; "" = it is already there.
        output_dir: The folder that it is downloaded to; "" = our own folder.
        base_model: "" = the only one.
        backend: The only backend that gets it; "" = all of the base model.
        is_partial: One backend that has it is enough.
        config: Of the download, see `DownloadRequest`; it may hold credentials.
    """

    name: str
    path: str = ""
    source: str = ""
    output_dir: str = ""
    base_model: str = ""
    backend: str = ""
    is_pinned: bool = False
    is_partial: bool = False
    max_workers: int = DEFAULT_WORKERS
    config: Mapping[str, str] = field(default_factory=dict, repr=False)

    def request(self, adapter: Adapter) -> DownloadRequest:
        """Return the download of this order, into the adapter's folder."""
        return DownloadRequest(self.source, Path(adapter.path), self.max_workers, self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderJob(Job):
    """An order that is being carried out, or the latest one of its name that failed. Its id is the name.

    Attributes:
        config: Of the order, without credentials.
        needs: Names of the credentials that came with it.
    """

    adapter: Adapter
    is_partial: bool = False
    max_workers: int = DEFAULT_WORKERS
    config: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    progress: DownloadProgress | None = None

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name

    @property
    def source(self) -> str:
        """Where it is downloaded from, "" = it is there."""
        return self.adapter.source

    @property
    def path(self) -> str:
        """Where it lies, or is downloaded to."""
        return self.adapter.path

    @property
    def phase(self) -> str:
        """`downloading`, `waiting` (for a backend) or `loading`; at its end `failed` or `interrupted`."""
        return self.step if self.is_active else self.state

    def order(self) -> AdapterOrder:
        """Return the order again, without its credentials."""
        adapter = self.adapter
        return AdapterOrder(
            adapter.name,
            "" if adapter.source else adapter.path,
            adapter.source,
            is_partial=self.is_partial,
            max_workers=self.max_workers,
            config=self.config,
        )


def order_file(path: Path) -> JobFile[OrderJob]:
    """Return the file in which orders are stored."""
    return JobFile(path, key="orders", to_row=order_to_row, from_row=order_from_row, noun="adapter_order")


def order_to_row(job: OrderJob) -> dict[str, Any]:
    """Return an order as a row of the file."""
    return {
        **{name: getattr(job.adapter, name) for name in TEXTS},
        "is_pinned": job.adapter.is_pinned,
        "is_partial": job.is_partial,
        "max_workers": job.max_workers,
        "config": dict(job.config),
        "needs": list(job.needs),
        "phase": job.phase,
        "since_s": job.since_s,
        "error": job.error,
    }


def order_from_row(row: Mapping[str, Any]) -> OrderJob:
    """Read an order from a row of the file.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: The row is not an order.
    """
    texts = {name: row[name] for name in TEXTS}
    phase = row["phase"]
    if not all(isinstance(text, str) for text in [*texts.values(), phase, row["error"]]):
        raise ValueError("an order's fields must be texts")
    since_s = float(row["since_s"])
    return OrderJob(
        id=texts["name"],
        state="failed" if phase == "failed" else "interrupted",
        step="" if phase in {"failed", "interrupted"} else phase,
        since_s=since_s,
        created_at_s=since_s,
        ended_at_s=since_s,
        error=row["error"],
        adapter=Adapter(**texts, is_pinned=bool(row["is_pinned"])),
        is_partial=bool(row["is_partial"]),
        max_workers=int(row["max_workers"]),
        config={str(key): str(value) for key, value in row["config"].items()},
        needs=tuple(map(str, row["needs"])),
    )
