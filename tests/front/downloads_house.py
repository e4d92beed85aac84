"""The whole HTTP door on loopback with downloads in it, over a stand-in Downloader: for tests of what its addresses say."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from appliance.app import Appliance
from appliance.base.clock import SystemClock
from appliance.base.errors import ApplianceError
from appliance.engines.receipts import Receipts
from appliance.front.access import Access
from appliance.front.access_log import AccessLog
from appliance.front.balance import BalanceDoor
from appliance.front.call import Call
from appliance.front.desk import Desk
from appliance.front.downloads import ROUTES, DownloadsDoor
from appliance.front.ollama import OllamaDoor
from appliance.front.ollama_pull import PullDoor
from appliance.front.openai import OpenAIDoor
from appliance.front.passage import Passage
from appliance.front.responses import ResponsesDoor
from appliance.front.routes import all_routes
from appliance.front.server import Server, serving_http
from appliance.front.sidecar import DIALECT, SidecarDoor, sidecar_routes
from appliance.front.system import SystemDoor
from appliance.models.download_wish import Folders
from appliance.models.fetching import Offered
from appliance.models.jobs import Jobs
from appliance.models.pulls import Pulls
from appliance.settings import load_or_raise
from tests.models.standin_downloader import StandinDownloader


@dataclass
class DownloadsHouse:
    """What a test reaches: the address, the stand-in, and what the door asked of others."""

    home: Path
    downloader: StandinDownloader
    base_url: str = ""
    offered: dict[str, list[Offered] | ApplianceError] = field(default_factory=dict)     # what each repository has
    happened: list[tuple[str, ...]] = field(default_factory=list)
    jobs: Jobs | None = None

    async def list(self, source: str, config: Mapping[str, str]) -> list[Offered]:
        found = self.offered[source]
        if isinstance(found, ApplianceError):
            raise found
        return found

    async def eject(self, alias: str) -> None:
        self.happened.append(("eject", alias))

    async def reread(self) -> None:
        self.happened.append(("reread",))


@asynccontextmanager
async def downloads_house(home: Path, *, is_sidecar: bool = False, jobs_path: Path | None = None, **variables: str) -> AsyncIterator[DownloadsHouse]:
    """Serve it. Downloads go below `home`; GATHER is zero, so that every step is told."""
    settings, _ = load_or_raise({"NAT_REDIRECT": "off", "ACCESS_LOG": "0", **variables})
    clock, parts = SystemClock(), Appliance(settings, [])
    parts.state = "serving"
    house = DownloadsHouse(home, StandinDownloader())
    async with parts.tasks:
        await parts.fleet.first_looks()
        parts.desk = desk = Desk(settings.front, receipts=Receipts(), metrics=parts.metrics, clock=clock, is_draining=lambda: parts.state != "serving",
                                 access_log=AccessLog(clock=clock, form="json"))
        house.jobs = jobs = Jobs(house.downloader, tasks=parts.tasks, clock=clock, path=jobs_path)
        await jobs.open()

        def admit(call: Call) -> None:
            desk.keys.check(Access.OPERATOR, call.headers, call.peer)

        pulls = Pulls(jobs, home=home, lister=house.list, clock=clock, eject=house.eject, on_change=house.reread)
        system = SystemDoor(status=lambda: {"ok": True}, metrics=parts.metrics, receipts=desk.receipts, measure=parts.measure)
        door = DownloadsDoor(jobs, folders=lambda: Folders(home), is_sidecar=is_sidecar, gather_s=0)
        if is_sidecar:
            server = Server(sidecar_routes(SidecarDoor(lambda: None), [(door, ROUTES)]), desk, clock=clock, dialect=DIALECT)
        else:
            routes = all_routes(
                OpenAIDoor(parts.router, heartbeat_s=lambda: 10), ResponsesDoor(parts.router, clock=clock),
                OllamaDoor(parts.router, clock=clock, pulls=PullDoor(pulls, admit=admit, gather_s=0)), system,
                BalanceDoor(parts.router, clock=clock, set_strategy=parts.fleet.set_strategy), downloads=door)
            server = Server(routes, desk, clock=clock, passage=Passage(parts.router, desk))
        async with serving_http(server, [("127.0.0.1", 0)], hurry=parts.hurry, tasks=parts.tasks, grace_s=lambda: 5) as bound:
            house.base_url = f"http://127.0.0.1:{bound[0][1]}"
            yield house
            await jobs.close()
        await parts.fleet.close()
