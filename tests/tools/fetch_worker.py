"""Add a worker CLI to the image while it is built.  Usage: fetch_worker.py URL SHA256 FOLDER  (an empty URL does nothing)

Takes a program, or a .tar.gz whose top holds programs. Without the right checksum nothing is kept.
"""

import hashlib
import io
import sys
import tarfile
import urllib.request
from pathlib import Path


def main(url: str, sha256: str, folder: str) -> int:
    """Fetch, check, unpack; give the exit code."""
    if not url:
        return 0
    if len(sha256) != 64:
        print("WORKER_CLI_SHA256 must be given with WORKER_CLI_URL: 64 hexadecimal digits.", file=sys.stderr)
        return 1
    with urllib.request.urlopen(url, timeout=120) as answer:
        data = answer.read()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        print(f"The file has the checksum {found}, not WORKER_CLI_SHA256.", file=sys.stderr)
        return 1
    target = Path(folder)
    if url.endswith((".tar.gz", ".tgz")):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(target, filter="data")
    else:
        program = target / url.rsplit("/", 1)[-1]
        program.write_bytes(data)
        program.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
