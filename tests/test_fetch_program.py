"""etc/fetch_program.py: a worker CLI, or a llama-server, gets into the image only with the checksum that was given."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "etc" / "fetch_program.py"
PROGRAM = b"#!/bin/sh\necho worker\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files are served."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def fetch(url: str, sha256: str, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "WORKER_CLI", url, sha256, str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"no_proxy": "127.0.0.1"},
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def archive(**members: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            file.addfile(info, io.BytesIO(data))
    return held.getvalue()


def test_a_program_with_the_right_checksum_is_kept_and_can_be_run(
    shelf: tuple[Path, str], tmp_path: Path
) -> None:
    (shelf[0] / "inference").write_bytes(PROGRAM)
    done = fetch(f"{shelf[1]}/inference", sha256(PROGRAM).upper(), tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    assert (
        subprocess.run(
            [str(tmp_path / "bin" / "inference")], capture_output=True, text=True, check=True
        ).stdout
        == "worker\n"
    )


def test_an_archive_is_unpacked(shelf: tuple[Path, str], tmp_path: Path) -> None:
    data = archive(inference=PROGRAM, helper=PROGRAM)
    (shelf[0] / "cli.tar.gz").write_bytes(data)
    assert fetch(f"{shelf[1]}/cli.tar.gz", sha256(data), tmp_path / "bin").returncode == 0
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == ["helper", "inference"]
    assert all(os.access(path, os.X_OK) for path in (tmp_path / "bin").iterdir())


def test_an_archive_that_leads_out_of_the_folder_is_refused(shelf: tuple[Path, str], tmp_path: Path) -> None:
    data = archive(**{"../outside": PROGRAM})
    (shelf[0] / "cli.tgz").write_bytes(data)
    done = fetch(f"{shelf[1]}/cli.tgz", sha256(data), tmp_path / "bin")
    assert done.returncode == 1
    assert "cannot be unpacked" in done.stderr
    assert not (tmp_path / "outside").exists()


def test_an_archive_with_a_link_that_leads_out_is_refused_whole(
    shelf: tuple[Path, str], tmp_path: Path
) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("empty"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(link)
    (shelf[0] / "cli.tgz").write_bytes(held.getvalue())
    done = fetch(f"{shelf[1]}/cli.tgz", sha256(held.getvalue()), tmp_path / "bin")
    assert done.returncode == 1
    assert "'link' is a link out of its folder" in done.stderr
    assert list((tmp_path / "bin").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "checksum", "sentence"),
    [
        ("/inference", "", "needs WORKER_CLI_SHA256"),
        ("/inference", "abc", "needs WORKER_CLI_SHA256"),
        ("/inference", "z" * 64, "needs WORKER_CLI_SHA256"),
        ("/inference", "0" * 64, "not WORKER_CLI_SHA256; it is not kept"),
        ("/missing", "0" * 64, "does not give the file"),
    ],
)
def test_without_the_right_checksum_nothing_is_kept(
    shelf: tuple[Path, str],
    tmp_path: Path,
    path: str,
    checksum: str,
    sentence: str,
) -> None:
    (shelf[0] / "inference").write_bytes(PROGRAM)
    done = fetch(shelf[1] + path, checksum, tmp_path / "bin")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (tmp_path / "bin").exists() or not list((tmp_path / "bin").iterdir())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x", "inference"])
def test_only_web_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    done = fetch(url, "0" * 64, tmp_path / "bin")
    assert done.returncode == 1
    assert "WORKER_CLI_URL must be" in done.stderr


def test_no_address_means_no_worker_and_a_checksum_alone_is_a_mistake(tmp_path: Path) -> None:
    assert fetch("", "", tmp_path / "bin").returncode == 0
    assert fetch("", "0" * 64, tmp_path / "bin").returncode == 1
    assert not (tmp_path / "bin").exists()


def linked(name: str, target: str) -> bytes:
    """Give an archive of one library and a link to it."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as file:
        info = tarfile.TarInfo("build/bin/libggml.so.0")
        info.size, info.mode = len(PROGRAM), 0o755
        file.addfile(info, io.BytesIO(PROGRAM))
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, target
        file.addfile(link)
    return held.getvalue()


def test_a_librarys_other_names_come_along(shelf: tuple[Path, str], tmp_path: Path) -> None:
    data = linked("build/bin/libggml.so", "libggml.so.0")
    (shelf[0] / "llama.tar.gz").write_bytes(data)
    assert fetch(f"{shelf[1]}/llama.tar.gz", sha256(data), tmp_path / "files").returncode == 0
    assert (tmp_path / "files/build/bin/libggml.so").read_bytes() == PROGRAM


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "..", "sub/x"])
def test_a_link_that_leads_elsewhere_is_refused(shelf: tuple[Path, str], tmp_path: Path, target: str) -> None:
    data = linked("build/bin/libggml.so", target)
    (shelf[0] / "llama.tar.gz").write_bytes(data)
    done = fetch(f"{shelf[1]}/llama.tar.gz", sha256(data), tmp_path / "files")
    assert done.returncode == 1
    assert "is a link out of its folder" in done.stderr
    assert not list((tmp_path / "files").rglob("*.so*"))
