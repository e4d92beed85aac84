"""Downloads by the appliance beside the official clients, from the same server in the same run.

Run it by `python -m bench.download`.

The server is nginx with static files: it answers as a Hugging Face endpoint and as an S3 bucket, faster than
either client can read. Each client is a process of its own; wall time includes its start. The appliance reads
every byte again for SHA-256 and syncs to the disk before a file has its name; the official clients do
neither.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from bench.__main__ import free_port, running_program, wait_for_port

COMMIT = "c0ffee" + "0" * 34
MIB = 1 << 20
OFFICIAL_HF = """
import sys
from huggingface_hub import snapshot_download
snapshot_download("ns/repo", local_dir=sys.argv[1], endpoint=sys.argv[2], token=False)
"""
OFFICIAL_S3 = """
import sys, os, boto3
from concurrent.futures import ThreadPoolExecutor
keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=sys.argv[2], **keys)
os.makedirs(sys.argv[1])
keys = [row["Key"] for row in client.list_objects_v2(Bucket="models")["Contents"]]
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda key: client.download_file("models", key, f"{sys.argv[1]}/{key}"), keys))
"""


def write_files(folder: Path, files: dict[str, int]) -> None:
    """Write files that are not all zeros, so that no client is fast by leaving holes."""
    source = random.Random(3)
    block = source.randbytes(MIB)
    for name, size in files.items():
        with (folder / name).open("wb") as file:
            for at in range(0, size, MIB):
                file.write(block[: min(MIB, size - at)])


def write_listings(folder: Path, root: Path, files: dict[str, int]) -> str:
    """Write the listings that nginx serves; return its rules for single files."""
    rows, rules, contents = [], "", ""
    for name, size in files.items():
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append(
            {
                "type": "file",
                "path": name,
                "size": size,
                "oid": digest[:40],
                "lfs": {"oid": digest, "size": size, "pointerSize": 134},
            }
        )
        rules += f"""location = /ns/repo/resolve/{COMMIT}/{name} {{ alias {folder}/{name};
            add_header X-Repo-Commit {COMMIT};
            add_header X-Linked-Etag '"{digest}"'; add_header X-Linked-Size {size}; }}\n"""
        found = (folder / name).stat()
        etag = f"{int(found.st_mtime):x}-{found.st_size:x}"  # as nginx makes it
        contents += (
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
        )
    (root / "info.json").write_text(
        json.dumps(
            {
                "_id": "1",
                "id": "ns/repo",
                "modelId": "ns/repo",
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
            }
        )
    )
    (root / "tree.json").write_text(json.dumps(rows))
    (root / "list.xml").write_text(
        "<?xml version='1.0'?><ListBucketResult><Name>models</Name><IsTruncated>false</IsTruncated>"
        f"{contents}</ListBucketResult>"
    )
    return rules


@contextmanager
def serve_files(folder: Path, root: Path, files: dict[str, int], limit: str):
    port = free_port()
    rules = write_listings(folder, root, files)
    (root / "nginx.conf").write_text(f"""
        worker_processes 1; pid {root}/pid; error_log {root}/err; daemon off; user root;
        events {{ worker_connections 1024; }}
        http {{ access_log off; sendfile on; etag on; {limit}
          client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
          uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
          types {{ application/json json; application/xml xml; }}
          server {{ listen 127.0.0.1:{port};
            location ~ ^/api/models/ns/repo/tree/ {{ alias {root}/tree.json; default_type application/json; }}
            location ~ ^/api/models/ns/repo {{ alias {root}/info.json; default_type application/json; }}
            location = /models {{ alias {root}/list.xml; default_type application/xml; }}
            location = /models/ {{ alias {root}/list.xml; default_type application/xml; }}
            location /models/ {{ alias {folder}/; }}
            {rules} }} }}""")
    with running_program(
        ["nginx", "-c", str(root / "nginx.conf"), "-p", str(root)], "0-1", stderr=subprocess.DEVNULL
    ):
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"


def client_commands(url: str, workers: int) -> dict[str, list[str]]:
    """Return the commands; each is followed by the output folder."""
    ours = [sys.executable, "-m", "appliance", "download", "-w", str(workers), "-s"]
    return {
        "hf appliance": [*ours, "ns/repo", "-o"],
        "hf official": [sys.executable, "-c", OFFICIAL_HF],
        "s3 appliance": [*ours, "s3://models", "-o"],
        "s3 official": [sys.executable, "-c", OFFICIAL_S3],
    }


def run_client(command: list[str], out: Path, url: str, total: int) -> tuple[float, float]:
    """Run one client; return wall and processor seconds."""
    os.sync()
    environ = {
        **os.environ,
        "HF_ENDPOINT": url,
        "ENDPOINT": url,
        "ACCESS_KEY": "a",
        "SECRET_KEY": "b",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [*command, str(out), url] if "-c" in command[1:2] else [*command, str(out)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    wall = time.monotonic() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    got = sum(
        path.stat().st_size for path in out.glob("*") if path.is_file() and not path.name.startswith(".")
    )
    if done.returncode or got != total:
        raise SystemExit(f"{command}: {done.returncode}, {got} of {total} bytes\n{done.stderr[-2000:]}")
    shutil.rmtree(out)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.download", description="Measure downloads beside the official clients."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--disk", help="where to write; default a temporary folder")
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        raise SystemExit("nginx is missing; `make bench` installs it")
    cases = [
        (f"one file of {arguments.mib} MiB", {"model.gguf": arguments.mib * MIB}, "", 1),
        (
            f"eight files of {arguments.mib // 8} MiB",
            {f"shard-{n}": arguments.mib // 8 * MIB for n in range(8)},
            "",
            1,
        ),
        ("200 files of 64 KiB", {f"small-{n:03}": 65536 for n in range(200)}, "", 1),
        (
            f"one file of {arguments.mib // 4} MiB, each connection held to 20 MB/s",
            {"model.gguf": arguments.mib // 4 * MIB},
            "limit_rate 20m;",
            1,
        ),
    ]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {arguments.rounds} rounds\n")
    print(f"{'':58}{'wall s':>8}{'MB/s':>9}{'cpu s':>8}")
    for title, files, limit, _ in cases:
        root = Path(tempfile.mkdtemp(prefix="bench-download-", dir=arguments.disk))
        try:
            (root / "files").mkdir()
            write_files(root / "files", files)
            total = sum(files.values())
            with serve_files(root / "files", root, files, limit) as url:
                found: dict[str, list[tuple[float, float]]] = {}
                for _ in range(arguments.rounds):  # in turns, so that a busy moment meets all
                    for name, command in client_commands(url, 8).items():
                        found.setdefault(name, []).append(run_client(command, root / "out", url, total))
            for name, times in found.items():
                wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
                print(f"{title + ', ' + name:58}{wall:8.2f}{total / wall / 1e6:9.0f}{cpu:8.2f}", flush=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
