"""What stands behind the proxies."""

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from benchmarks.load.generate import PATH
from benchmarks.load.wire import message
from benchmarks.processes import BenchError, Process, Processes, find, free_port

SMALL: Final = 128
"""Bytes of a small message: most calls of most services."""
LARGE: Final = 64 * 1024
HUGE: Final = 1024 * 1024


class Backend(Enum):
    """The kinds of server."""

    ECHO = "nghttpd --echo-upload"
    """Sends each request's body back. It makes a file for each: some 8,000 calls a second, the proxies have time to idle."""
    FILES = "nghttpd"
    """Reads the request, sends a file of the same size: fast enough to saturate any of the proxies. Its windows are large."""
    STREAMS = "benchmarks.echo"
    """Sends each message back while the stream goes on."""


@dataclass(frozen=True, slots=True)
class Message:
    """A gRPC message on disk, as h2load wants it; FILES answers with the same bytes."""

    size: int
    """Of the payload; 5 bytes of length prefix come on top."""
    body: Path
    path: str
    """Of the call that is answered with a message of this size."""


def write_messages(folder: Path) -> dict[int, Message]:
    """The messages of all sizes, by size."""
    messages = {}
    for size in (SMALL, LARGE, HUGE):
        path = PATH if size == SMALL else f"/echo.Echo/Unary{size}"
        body = folder / path.lstrip("/")
        body.parent.mkdir(exist_ok=True)
        body.write_bytes(message(bytes(number * 7 & 0xFF for number in range(size))))
        messages[size] = Message(size, body, path)
    return messages


def start(kind: Backend, processes: Processes, documents: Path, cpus: frozenset[int] | None) -> tuple[int, Process]:
    """Start a server; returns the port on which it listens already."""
    port = free_port()
    if kind is Backend.STREAMS:
        process = processes.start([sys.executable, "-m", "benchmarks.echo", str(port)], cpus)
    else:
        program = find("nghttpd")
        if program is None:
            raise BenchError("nghttpd is not installed; `make tools` installs it")
        words = [program, "--no-tls", "-a", "127.0.0.1", "--trailer=grpc-status:0", "-d", str(documents)]
        # Envoy opens as many streams as it likes before the SETTINGS come; above the limit they would be refused.
        words += ["--max-concurrent-streams", "1000"]
        words += ["--echo-upload"] if kind is Backend.ECHO else ["-w", "24", "-W", "26"]
        process = processes.start([*words, str(port)], cpus)
    process.await_port(port)
    return port, process
