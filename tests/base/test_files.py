"""Files that are written whole or not at all: their content, their mode, and what a failure leaves behind."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.files import DEFAULT_MODE, MAX_TEXT_BYTES, open_to_read, read_text_file, write_atomic


@pytest.fixture
def umask() -> Iterator[None]:
    former = os.umask(0o022)
    yield
    os.umask(former)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("mode", "becomes"), [(0o600, 0o600), (0o640, 0o640), (DEFAULT_MODE, 0o644)])
@pytest.mark.parametrize("is_synced", [True, False])
def test_file_is_written_completely(
    tmp_path: Path,
    umask: None,
    mode: int,
    becomes: int,
    is_synced: bool,
) -> None:
    path = tmp_path / "some" / "folder" / "a.json"
    for data in (b"first", b"", b"a longer one"):
        write_atomic(path, data, mode=mode, is_synced=is_synced)
        assert everything_in(path.parent) == {"a.json": data}
        assert path.stat().st_mode & 0o777 == becomes


def test_mode_is_the_new_files(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"for all eyes")
    write_atomic(path, b"secret")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_synced", [True, False])
def test_unsynced_file_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    path, at_sync = tmp_path / "a.json", []
    monkeypatch.setattr(
        "appliance.base.files.os.fsync",
        lambda descriptor: at_sync.append((os.fstat(descriptor).st_size, path.exists())),
    )
    write_atomic(path, b"seven b", is_synced=is_synced)
    assert at_sync == ([(7, False)] if is_synced else [])  # all bytes, and before anybody sees the name


def test_rest_of_a_killed_writer_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".a.json.new").write_bytes(b"a half, longer than what comes")
    write_atomic(tmp_path / "a.json", b"whole")
    assert everything_in(tmp_path) == {"a.json": b"whole"}


class FullDisk:
    """A file of a disk that takes five bytes more."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._file.write(data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.fdopen
    monkeypatch.setattr("appliance.base.files.os.fdopen", lambda *given: FullDisk(whole(*given)))


def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("appliance.base.files.os.fsync", refuse)


def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(target))

    monkeypatch.setattr(Path, "replace", refuse)


def broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.base.files.os.fsync", refuse)


@pytest.mark.parametrize(
    ("fail", "raised"),
    [(no_write, OSError), (no_sync, OSError), (no_rename, OSError), (broken_off, KeyboardInterrupt)],
)
@pytest.mark.parametrize("former", [b"what stood there", None])
def test_failure_leaves_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Any,
    raised: type[BaseException],
    former: bytes | None,
) -> None:
    path = tmp_path / "a.json"
    if former is not None:
        path.write_bytes(former)
    fail(monkeypatch)
    with pytest.raises(raised):
        write_atomic(path, b"what should stand there")
    assert everything_in(tmp_path) == ({"a.json": former} if former is not None else {})


def test_refused_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a file where a folder should be")
    for path in (tmp_path / "a" / "b.json", tmp_path / "a" / "b" / "c.json"):
        with pytest.raises(OSError, match="a"):
            write_atomic(path, b"x")
    (tmp_path / "b.json" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"b\.json"):
        write_atomic(tmp_path / "b.json", b"a folder stands in its place")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.json"]
    with pytest.raises(OSError):  # noqa: PT011 - whichever the machine gives: of a file system that takes no files
        write_atomic(Path("/proc/none.json"), b"x")


# ---- files that an operator names


def test_text_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("schlüssel\n")
    assert read_text_file(path) == "schlüssel\n"


def test_text_in_a_pipe_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    try:
        assert read_text_file(Path(f"/dev/fd/{reader}")) == "secret"
    finally:
        os.close(reader)


@pytest.mark.timeout(10)
def test_pipe_without_a_writer_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_text_file(tmp_path / "pipe") == ""


@pytest.mark.parametrize(
    ("path", "number"),
    [("/dev/zero", errno.EFBIG), ("/dev", errno.EISDIR), ("/none", errno.ENOENT), ("/a\0b", errno.EINVAL)],
)
def test_what_cannot_be_read_as_text_is_refused(path: str, number: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r".") as raised:
        read_text_file(Path(path))
    assert raised.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == before


def test_largest_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * MAX_TEXT_BYTES)
    assert len(read_text_file(path)) == MAX_TEXT_BYTES
    with open_to_read(path) as file:
        assert os.get_blocking(file.fileno())
