"""Put a program into the image while it is built: fetch_program.py NAME URL SHA256 FOLDER. No URL: nothing.

NAME is how the two build arguments begin (WORKER_CLI, LLAMA_SERVER). The URL is a program, or a .tar.gz of
programs and their libraries. Nothing is kept unless its SHA-256 is the given one. Standard library only.
"""

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

LIMIT_BYTES = 1 << 30


def refuse(sentence: str) -> int:
    """Say why nothing is kept; give the exit code."""
    print(f"program for the image: {sentence}", file=sys.stderr)  # noqa: T201 - the builder's log
    return 1


def unpack(data: bytes, target: Path) -> None:
    """Write the archive's folders and plain files below `target`.

    Raises:
        ValueError: It holds anything else. Nothing was written.
    """
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        members = archive.getmembers()
        for member in members:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{member.name!r} leads out of the folder")
            if member.issym():  # libraries come under several names
                link = PurePosixPath(member.linkname)
                if link.is_absolute() or len(link.parts) != 1 or link.name == "..":
                    raise ValueError(f"{member.name!r} is a link out of its folder")
            elif not (member.isfile() or member.isdir()):
                raise ValueError(f"{member.name!r} is neither a file, nor a folder, nor a link beside itself")
        for member in members:
            path = target / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                path.symlink_to(member.linkname)
                continue
            held = archive.extractfile(member)
            path.write_bytes(held.read() if held else b"")
            path.chmod(0o755 if member.mode & 0o111 else 0o644)


def main(variable: str, url: str, sha256: str, folder: str) -> int:
    """Fetch, check, unpack; give the exit code."""
    if not url:
        return refuse(f"{variable}_SHA256 is given without {variable}_URL.") if sha256 else 0
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        return refuse(f"{variable}_URL must be an https (or http) address.")
    if len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef"):
        return refuse(f"{variable}_URL needs {variable}_SHA256, the file's SHA-256 in 64 hexadecimal digits.")
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:  # noqa: S310 - the scheme is checked above
            data: bytes = answer.read(LIMIT_BYTES + 1)
    except OSError as exc:
        return refuse(f"{parts.hostname} does not give the file: {exc}.")
    if len(data) > LIMIT_BYTES:
        return refuse(f"the file is larger than {LIMIT_BYTES} bytes.")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        return refuse(f"the file's SHA-256 is {found}, not {variable}_SHA256; it is not kept.")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    name = PurePosixPath(parts.path).name
    if name.endswith((".tar.gz", ".tgz")):
        try:
            unpack(data, target)
        except (tarfile.TarError, OSError, ValueError) as exc:
            return refuse(f"the archive cannot be unpacked: {exc}.")
    else:
        program = target / (name or "program")
        program.write_bytes(data)
        program.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
