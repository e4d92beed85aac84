"""A real S3 server, moto, for objects of a gigabyte: its protocol, with a file behind an object.

moto holds an object in a temporary file, but reads it whole into memory for each part that is asked for, and
once more to cut the part out: with 1 GiB and four workers that is eight gigabytes of memory and seconds for
each part. Here the object's bytes stay in the file that they came from, and a part is read piece by piece
while it is sent; so the bytes that were sent can be counted, and slowed.

    with S3Server() as server:
        server.put(path, "weights", "llama/model.gguf")
        …                                               # server.url, server.sent
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeKey, s3_backends
from moto.server import ThreadedMotoServer

PIECE = 256 * 1024


@dataclass(frozen=True)
class Stretch:
    """A part of a file in the place of bytes: it has a length, can be cut, and is read when iterated."""

    server: "S3Server"
    path: Path
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, cut: slice) -> "Stretch":
        first, last, _ = cut.indices(len(self))
        return Stretch(self.server, self.path, self.start + first, self.start + last)

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb", buffering=0) as file:
            for at in range(self.start, self.end, PIECE):
                piece = os.pread(file.fileno(), min(PIECE, self.end - at), at)
                yield piece
                self.server.sent += len(piece)  # where the asker has gone, nobody comes back for the next one
                if self.server.drip_s:
                    time.sleep(self.server.drip_s)


class FileKey(FakeKey):
    """An object whose bytes lie in a file. From `_value_buffer` moto computes its ETag, 16 MB at a time."""

    def __init__(self, server: "S3Server", path: Path, name: str, bucket: str) -> None:
        super().__init__(name, b"", DEFAULT_ACCOUNT_ID, "us-east-1", bucket_name=bucket)
        self._value_buffer.close()
        self._value_buffer = path.open("rb")
        self.contentsize = path.stat().st_size
        self._stretch = Stretch(server, path, 0, self.contentsize)

    @property
    def value(self) -> Any:
        return self.__dict__.get("_stretch", b"")

    @value.setter
    def value(self, new: bytes) -> None:
        assert new == b"", "its bytes are those of its file"


class S3Server:
    """One server. All of one process share their buckets, so each takes its own away again."""

    drip_s = 0.0  # between two pieces of a part

    def __enter__(self) -> "S3Server":
        self.sent = 0
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="a",
            aws_secret_access_key="b",
            region_name="us-east-1",
        )
        self._buckets: dict[str, list[FileKey]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for bucket, keys in self._buckets.items():
            for key in keys:
                self.client.delete_object(Bucket=bucket, Key=key.name)
            self.client.delete_bucket(Bucket=bucket)
        self.client.close()
        self._server.stop()

    def put(self, path: Path, bucket: str, name: str) -> str:
        """Put a file's bytes in as an object; give its ETag as clients see it."""
        if bucket not in self._buckets:
            self.client.create_bucket(Bucket=bucket)
            self._buckets[bucket] = []
        key = FileKey(self, path, name, bucket)
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_bucket(bucket).keys[name] = key
        self._buckets[bucket].append(key)
        return str(self.client.head_object(Bucket=bucket, Key=name)["ETag"])
