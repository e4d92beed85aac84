"""The documentation: generated pages are what the code says, and what pages name is there."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.base.balancing import STRATEGIES
from appliance.base.metrics.accounts import AccountFigures
from appliance.base.metrics.market import MarketFigures
from appliance.base.metrics.registry import Metrics
from appliance.downloads.sources.table import SOURCES
from appliance.engines.dialects.table import DIALECTS

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/*.md")),
    *sorted(ROOT.glob(".github/**/*.md")),
]
GENERATED = {
    "docs/configuration.md": ["settings", "--markdown"],
    "docs/http-api.md": ["routes", "--markdown"],
    "etc/appliance.env.example": ["settings", "--env-example"],
    "etc/compose.settings.yaml": ["settings", "--compose"],
    "etc/models.schema.json": ["models", "schema"],
    "etc/prices.schema.json": ["prices", "schema"],
}


@pytest.mark.parametrize("page", GENERATED)
def test_generated_page_is_up_to_date(page: str) -> None:
    """`make docs` writes them anew."""
    command = [sys.executable, "-m", "appliance", *GENERATED[page]]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert (ROOT / page).read_text(encoding="utf-8") == done.stdout, f"{page} is old: run `make docs`"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, and a heading in it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_modules_exist(page: Path) -> None:
    """Every `package/module.py` in back quotes is a file: pages follow when code moves."""
    if page.name == "CHANGELOG.md":
        return  # old entries name what was there then
    missing = []
    for name in re.findall(r"`((?:[\w.]+/)+[\w*]+\.(?:py|sh|proto|c))`", page.read_text(encoding="utf-8")):
        if not any(folder.glob(name) and list(folder.glob(name)) for folder in (ROOT, ROOT / "appliance")):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/backends.md", [f"`{strategy}`" for strategy in STRATEGIES]),
        ("appliance/cli/backends.py", STRATEGIES),
        ("protos/appliance/control/v1/control.proto", STRATEGIES),
        ("docs/backends.md", [f"`{kind}`" for kind in DIALECTS]),
        ("docs/downloads.md", [f"{scheme}://" for scheme in SOURCES]),
    ],
)
def test_pages_name_every_member_of_a_table(page: str, names: Sequence[str]) -> None:
    """A new strategy, engine or source is described where operators look for it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [name for name in names if name not in text] == []


def test_every_metric_of_the_appliance_is_described() -> None:
    """docs/metrics.md names each family."""
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    metrics = Metrics()
    assert metrics.router  # its families appear at first use
    every = AccountFigures(is_redis_up=True, connections=(1, 1), snapshot_age_s=1.0)
    metrics.use_accounts(lambda: every)  # with ACCOUNTS=1
    metrics.use_market(lambda: MarketFigures(age_s=0.0))  # with MARKET=1
    families = [family.name + "_total" * (family.type == "counter") for family in metrics.registry.collect()]
    assert len(families) > 40
    assert [name for name in families if not re.search(rf"`{name}[`{{]", text)] == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to each page of docs/."""
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_readme_is_short() -> None:
    """A newcomer reads it in five minutes."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
