"""The names of the package: each class once, the field's words instead of our own, and docstrings that list their modules."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "appliance"
GENERATED = PACKAGE / "control" / "v1"

# Words of the first version that a newcomer had to look up, and what stands in their place.
BANNED = {
    r"desks?": "pipeline",
    r"lanes?": "connection",
    r"doors?": "HTTP front, gRPC control, CLI",
    r"boards?": "manager",
    r"houses?": "state, or what it really is",
    r"rooms?": "capacity (of a backend), package (of code), memory",
    r"floors": "layers",
    r"trades?": "service",
    r"wish(es|ed)?": "option, request",
    r"passages?": "passthrough",
    r"rubbish": "invalid response",
    r"rest(ed|s)(?! s\b)": "circuit open, retrying in N s",
    r"keepers?": "supervisor",
    r"lookers?": "prober",
    r"tellings?": "sample",
    r"books": "stats",
    r"errands?": "context, request",
    r"reckon\w*": "compute, count",
    r"whoever": "the client, the caller, the operator",
    r"somebody": "a client, a caller, a request",
    r"nobody": "no client, no caller, no backend",
    r"(wait|waits|waiting|stand|stands) in (a |the )?line": "queue",
    r"systems? [A-E]": "the project's name, in docs/compatibility.md only",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{number}>\b{word}\b)" for number, word in enumerate(BANNED)), re.IGNORECASE
)
# Names that users meet keep their spelling: fields of JSON and of gRPC, and the words of nvidia-smi's own output.
ON_THE_WIRE = re.compile(
    r'string (?:room|keeper) = |"room"|`room`|room=row|s\.room|keeper=|"keeper"|keeper:|(?:GPU )?Board|upstream_rubbish|"passage"'
)
# A word inside an identifier counts as well: `_door`.
TEXTS = [
    *(path for path in sorted(PACKAGE.rglob("*.py")) if GENERATED not in path.parents),
    *sorted(ROOT.glob("protos/**/*.proto")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(path for path in (ROOT / "examples").iterdir() if path.is_file()),
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "Makefile",
            "Dockerfile",
            "compose.yaml",
            ".env.example",
        )
    ),
    *(ROOT / name for name in ("entrypoint.sh", "etc/appliance.env.example", "shims/nvidia-smi")),
]


def _words(text: str) -> str:
    """Take identifiers apart, so that their words are seen."""
    return re.sub(r"(?<=[a-z0-9])_(?=[a-z])|(?<=[a-z])(?=[A-Z])|(?<![\w])_+(?=[a-z])", " ", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_word(path: Path) -> None:
    """Our own words do not come back."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for match in PATTERN.finditer(_words(ON_THE_WIRE.sub("", line))):
            better = list(BANNED.values())[int((match.lastgroup or "w0")[1:])]
            found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: {better}")
    assert not found, "\n".join(found)


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if GENERATED not in path.parents]


def test_no_class_name_twice() -> None:
    """One name, one meaning."""
    where = defaultdict(list)
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


PACKAGES = [path.parent for path in _modules() if path.name == "__init__.py"]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_package_docstring_lists_its_modules(folder: Path) -> None:
    """`Modules:` in a package's docstring names every module and sub-package, and nothing else."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    _, heading, listing = docstring.partition("Modules:\n")
    named = set(re.findall(r"^ {4}(\w+): \S", listing, re.MULTILINE))
    there = {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
    there |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert heading, f"{folder.relative_to(ROOT)}/__init__.py has no list `Modules:`"
    assert named == there


def test_glossary_is_short() -> None:
    """At most twenty words, all of them the field's."""
    rows = re.findall(
        r"^\| (?!Word |---)", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert 1 <= len(rows) <= 20


def test_proto_lines_are_at_most_110_columns() -> None:
    """As ruff holds it for Python."""
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(ROOT.glob("protos/**/*.proto"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 110
    ]
    assert not long


def test_test_names_fit_on_a_line() -> None:
    """A test's name says what is promised, in about 60 characters."""
    long = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(
            r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if len(name) > 70
    ]
    assert not long, "\n".join(long)
