"""Tells when files may have changed: the kernel's inotify, by three calls of the C library.

What it tells is a reason to look, never what to believe: events get lost when their queue overflows, and a
folder may be replaced between two of them. File systems whose files other machines change have no events of
those changes; the caller looks at them every few seconds instead.

Source: man 7 inotify, inotify_add_watch(2), statfs(2), linux/magic.h.
"""

import asyncio
import ctypes
import errno
import os
import struct
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF, UNMOUNT, Q_OVERFLOW, IGNORED = 0x400, 0x800, 0x2000, 0x4000, 0x8000
ONLYDIR, MASK_ADD, ISDIR = 0x0100_0000, 0x2000_0000, 0x4000_0000
_OF_NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO | DELETE_SELF | MOVE_SELF | ONLYDIR | MASK_ADD
_OF_CONTENT = MODIFY | ATTRIB | CLOSE_WRITE
_OF_FOLDER = DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED
_EVENT = struct.Struct("iIII")
READ_BYTES = 65_536
MAX_LINKS = 40  # as the kernel has it
MAX_FINISHED = 20_000  # files of folders that were moved here
LIMITS = {
    errno.ENOSPC: "the limit of watches is reached (sysctl fs.inotify.max_user_watches)",
    errno.EMFILE: "the limit of instances is reached (sysctl fs.inotify.max_user_instances)",
    errno.ENFILE: "the limit of open files is reached",
    errno.ENOMEM: "the kernel has no memory for it",
    errno.ENOSYS: "the kernel has no inotify",
}
# File systems whose files change without events: by other machines, by a host, by the kernel itself.
NO_EVENTS = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x00C36400: "ceph",
    0x73757245: "coda",
    0x5346414F: "afs",
    0x6B414653: "afs",
    0x0BD00BD0: "lustre",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x47504653: "gpfs",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
    0x7C7C6673: "prl_fs",
    0x9FA0: "proc",
    0x62656572: "sysfs",
}
FileMark = tuple[int, int, int]  # inode, time of change in nanoseconds, size in bytes


@dataclass(slots=True)
class Place:
    """What matters in one folder.

    Attributes:
        names: Entries that matter.
        files: Those of them that are files, whose content matters, too.
        ending: Files with this ending matter, and folders, except hidden ones; "" = only `names`.
    """

    names: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    ending: str = ""

    @property
    def has_content(self) -> bool:
        """Whether the content of files here matters, not their names alone."""
        return bool(self.files or self.ending)

    def takes(self, name: str, *, is_folder: bool) -> bool:
        """Whether an event about this entry matters."""
        if name in self.names or name in self.files:
            return True
        return bool(self.ending) and name[:1] != "." and (is_folder or name.lower().endswith(self.ending))


@dataclass(slots=True)
class Changes:
    """What has happened.

    Attributes:
        is_due: A file came, went, was closed after it was written, or nothing is certain.
        is_growing: A file was written to.
        finished: Files that were closed after they were written, and what was moved here.
    """

    is_due: bool = False
    is_growing: bool = False
    finished: set[str] = field(default_factory=set)


class FileEvents:
    """Watches places. One thread at a time uses it, except for `wait`, which belongs to the event loop.

    Attributes:
        reason: Why it does not tell of all changes; "" = it does.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._descriptor = -1
        self._watched: dict[int, dict[str, Place]] = {}  # by the number of the watch: places by path
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._is_closed = False
        self._following = threading.Lock()

    def close(self) -> None:
        """End all watches, at the end of `follow` where a thread is in it."""
        self._is_closed = True
        if self._following.acquire(blocking=False):
            self._end()
            self._following.release()

    def follow(self, places: Mapping[str, Place]) -> bool:
        """Watch these places and no others (blocks).

        Returns:
            Whether one of them was not watched before: what happened there until now was not told.
        """
        with self._following:
            try:
                return not self._is_closed and self._follow(places)
            finally:
                if self._is_closed:
                    self._end()

    def _end(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._watched = -1, {}

    def _follow(self, places: Mapping[str, Place]) -> bool:
        former, self._watched = self._watched, {}
        try:
            self._open()
            for path, place in places.items():
                number = self._add(path, place)
                if number is not None:
                    self._watched.setdefault(number, {})[path] = place
        except OSError as exc:
            where = f"{exc.filename}: " if exc.filename else ""
            self.reason = LIMITS.get(exc.errno or 0) or f"{where}{exc.strerror}"
            self._end()
            return False
        self.reason = ""
        for number in former.keys() - self._watched.keys():
            self._libc.inotify_rm_watch(self._descriptor, number)
        return bool(self._watched.keys() - former.keys())

    def take(self) -> Changes:
        """Read the events that have come."""
        changes = Changes()
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                break
            for number, mask, name in _split_events(data):
                self._count(changes, number, mask, name)
        return changes

    async def wait(self, timeout_s: float) -> bool:
        """Wait until there are events; return False after `timeout_s`."""
        if self._descriptor < 0:
            await asyncio.sleep(timeout_s)
            return False
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, come.set)
        try:
            async with asyncio.timeout(timeout_s):
                await come.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._descriptor)
        return True

    # ---- the calls

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = self._checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def _add(self, path: str, place: Place) -> int | None:
        """Watch one folder; None = it is not there, or only its name matters and it cannot be listed."""
        name = os.fsencode(path)
        if place.has_content and (kind := self._file_system(name)) in NO_EVENTS:
            raise OSError(errno.EOPNOTSUPP, f"{NO_EVENTS[kind]} does not tell of all changes", path)
        mask = _OF_NAMES | _OF_CONTENT if place.has_content else _OF_NAMES
        try:
            return self._checked(
                self._libc.inotify_add_watch(self._descriptor, name, ctypes.c_uint32(mask)), path
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            if place.has_content:
                raise
            return None

    def _file_system(self, name: bytes) -> int:
        found = ctypes.create_string_buffer(512)
        if self._libc.statfs(name, found) != 0:
            return 0
        return int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF

    def _checked(self, value: int, path: str | None = None) -> int:
        if value < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return value

    # ---- the events

    def _count(self, changes: Changes, number: int, mask: int, name: str) -> None:
        """Count one event.

        1. some were lost                              → nothing is certain
        2. of a watch that is not there any more       → nothing
        3. the folder itself was changed, or is gone   → due; what is there now is watched at the next look
        4. about an entry that does not matter         → nothing
        5. written to                                  → growing, not finished
        6. closed after it was written, or moved here  → due, finished
        7. another time or mode                        → due; a finished file stays one
        8. else                                        → due
        """
        if mask & Q_OVERFLOW:  # 1
            changes.is_due = True
            changes.finished.clear()
            return
        places = self._watched.get(number)
        if places is None:  # 2
            return
        if mask & _OF_FOLDER or not name:  # 3
            changes.is_due = True
            return
        is_folder = bool(mask & ISDIR)
        for path, place in places.items():
            if not place.takes(name, is_folder=is_folder):  # 4
                continue
            entry = f"{path.rstrip('/')}/{name}"
            if mask & MODIFY:  # 5
                changes.is_growing = True
                changes.finished.discard(entry)
            elif mask & (CLOSE_WRITE | MOVED_TO):  # 6
                changes.is_due = True
                changes.finished.add(entry)
            elif mask & ATTRIB:  # 7
                changes.is_due = True
            else:  # 8
                changes.is_due = True
                changes.finished.discard(entry)


def _split_events(data: bytes) -> Iterator[tuple[int, int, str]]:
    at = 0
    while at < len(data):
        number, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size + length
        yield number, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))


def places_of(paths: Iterable[Path]) -> dict[str, Place]:
    """Return the folders in which a change may change what these files are (blocks).

    Each link on the way is followed: the folder with the link matters, and the one that it leads to. Of a
    path that is not there, the last folder that is there matters.

    Args:
        paths: Absolute.
    """
    found: dict[str, Place] = {}
    ends: dict[str, str | None] = {}  # folders that were walked: where they end
    for path in paths:
        if (folder := _end_of(str(path.parent), found, ends)) is not None:
            _follow_entry(folder, path.name, found, is_file=True)
    return found


def _end_of(folder: str, found: dict[str, Place], ends: dict[str, str | None]) -> str | None:
    """Return where a folder ends, as a path without links; None = it is not there."""
    if folder not in ends:
        above, name = os.path.split(folder)
        parent = "/" if above == folder else _end_of(above, found, ends)
        if not name or parent is None:
            ends[folder] = parent
        else:
            ends[folder] = _follow_entry(parent, name, found, is_file=False)
    return ends[folder]


def _follow_entry(folder: str, name: str, found: dict[str, Place], *, is_file: bool) -> str | None:
    """Note an entry of a folder, and what it leads to if it is a link; return its path without links.

    Args:
        folder: Its path without links.
    """
    left = [name]  # names to walk, the next one last
    for _ in range(MAX_LINKS * 64):
        if not left:
            return folder
        name = left.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            folder = os.path.dirname(folder)
            continue
        place, entry = found.setdefault(folder, Place()), f"{folder.rstrip('/')}/{name}"
        place.names.add(name)
        try:
            target = os.readlink(entry)
        except OSError:
            if is_file and not left:
                place.files.add(name)
            elif not os.path.isdir(entry):
                return None
            folder = entry
            continue
        left += reversed(target.split("/"))
        if target.startswith("/"):
            folder = "/"
    return None


def marks_of(finished: Iterable[str]) -> frozenset[FileMark]:
    """Return the marks of files that are whole now, of folders those of the files in them (blocks)."""
    marks: set[FileMark] = set()
    for path in finished:
        for file in _files_in(path):
            try:
                found = os.stat(file)
            except (OSError, ValueError):
                continue
            marks.add((found.st_ino, found.st_mtime_ns, found.st_size))
            if len(marks) >= MAX_FINISHED:
                return frozenset(marks)
    return frozenset(marks)


def _files_in(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for folder, _, files in os.walk(path):
        for name in files:
            yield os.path.join(folder, name)
