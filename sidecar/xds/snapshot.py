"""The last good configuration as a file: packed, checked, written at once or not at all. Knows bytes and files, no tasks.

    remora-snapshot format=1 saved=UNIX_SECONDS bytes=N sha256=HEX
    BODY: N bytes: the node, then a DiscoveryResponse per type, each behind its length in 4 bytes

The sum covers the body and the time. A file that is damaged, of another format or of another node is refused as a whole: half a
configuration is worse than none.
"""

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

FORMAT: Final = 1
MAX_BYTES: Final = 256 * 1024 * 1024
"""A longer file is not read."""
MODE: Final = 0o600
"""It tells who may call whom, and may hold keys."""
_HEADER: Final = re.compile(
    rb"remora-snapshot format=(\d{1,9}) saved=(\d{1,18}) bytes=(\d{1,18}) sha256=([0-9a-f]{64})\n"
)
_MAX_HEADER_BYTES: Final = 200
_LENGTH: Final = struct.Struct(">I")


class BadSnapshot(Exception):
    """The file cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """Everything of one type."""

    type_url: str
    version: str
    """As the control plane counted when it was saved."""
    resources: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration as it was acknowledged."""

    saved_at: int
    """Unix seconds."""
    parts: tuple[Part, ...]


def pack(node: bytes, snapshot: Snapshot) -> bytes:
    """The file's content."""
    pieces = [node]
    for part in snapshot.parts:
        response = discovery_pb2.DiscoveryResponse(
            type_url=part.type_url,
            version_info=part.version,
            resources=[any_pb2.Any(type_url=part.type_url, value=data) for data in part.resources],
        )
        pieces.append(response.SerializeToString())
    body = b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)
    header = f"remora-snapshot format={FORMAT} saved={snapshot.saved_at} bytes={len(body)} sha256="
    return f"{header}{_sum(snapshot.saved_at, body)}\n".encode() + body


def unpack(data: bytes, node: bytes) -> Snapshot:
    """What `pack` packed for this node. Raises BadSnapshot."""
    header = _HEADER.match(data[:_MAX_HEADER_BYTES])
    if header is None:
        raise BadSnapshot("it is no snapshot of a configuration")
    form, saved_at, length = int(header[1]), int(header[2]), int(header[3])
    if form != FORMAT:
        raise BadSnapshot(f"it is of format {form}, this release reads {FORMAT}")
    body = data[header.end() :]
    if len(body) != length:
        raise BadSnapshot(f"{len(body)} bytes where {length} were written")
    if _sum(saved_at, body) != header[4].decode():
        raise BadSnapshot("its bytes are not those that were written (checksum)")
    try:
        whose, *pieces = _pieces(body)
        if whose != node:
            raise BadSnapshot("it is of another node, or of the same with other addresses")
        return Snapshot(saved_at, tuple(map(_part, pieces)))
    except (DecodeError, struct.error, ValueError):
        raise BadSnapshot("its content cannot be read") from None


def _sum(saved_at: int, body: bytes) -> str:
    total = hashlib.sha256(str(saved_at).encode())
    total.update(body)
    return total.hexdigest()


def _pieces(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size + length
        if at > len(body):
            raise ValueError
        yield body[at - length : at]


def _part(data: bytes) -> Part:
    response = discovery_pb2.DiscoveryResponse.FromString(data)
    return Part(response.type_url, response.version_info, tuple(item.value for item in response.resources))


def write(path: Path, data: bytes) -> None:
    """Put a file in place of the old one, durably; who reads meanwhile, or after a power cut, sees one of the two. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")  # one writer in a process
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()  # of a process with our number, which did not get further
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path) -> tuple[bytes, float]:
    """A file and when it was known to be current last (its mtime, Unix seconds). Raises BadSnapshot, OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise BadSnapshot("it is no file")
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise BadSnapshot("others may write it; it must belong to this user, mode 0600")
        if about.st_size > MAX_BYTES:
            raise BadSnapshot(f"{about.st_size} bytes; at most {MAX_BYTES} are read")
        return file.read(), about.st_mtime
