"""What happens to purchases when a database does: it restarts, or its disk is full."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from apps.bookstore.reckoning import reckon
from proto.bookstore.v1 import orders_pb2
from tests.apps.bookstore.shop import Market, open_market
from tests.postgres import Postgres, running
from tests.waiting import eventually


def outcome(market: Market, order_id: str, book: str = "at-least-once") -> str:
    request = orders_pb2.PurchaseRequest(order_id=order_id, reader=f"r-{order_id}", book=book, copies=1)
    try:
        market.orders.Purchase(request, timeout=8)
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


def is_over(market: Market, order_id: str) -> bool:
    return outcome(market, order_id) in ("OK", "FAILED_PRECONDITION")


def has_come_to(asked: Sequence[Future[str]], count: int) -> bool:
    return sum(each.done() for each in asked) >= count


def adds_up(market: Market) -> None:
    report = eventually(lambda: _closed(market), timeout_s=40)
    assert report is not None
    assert report.wrong == ()
    assert report.money_cents.found == report.money_cents.expected
    assert report.stock.found == report.stock.expected


def _closed(market: Market) -> Any:
    report = reckon(market.directory, market.url)
    return None if report.open_orders else report


def crash(server: Postgres) -> None:
    """Kill one of its processes: PostgreSQL then throws everybody out, recovers from its log, and is back."""
    with psycopg.connect(f"host={server.directory} user=postgres dbname=postgres", autocommit=True) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGKILL)


@pytest.mark.slow
def test_postgresql_crashes_in_the_middle_of_two_phase_commits(tmp_path: Path) -> None:
    with running() as server, open_market(tmp_path, "xa", server.one_a_service(), 200) as market:
        books = ("at-least-once", "two-generals", "deep-currents", "lease-of-life")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(outcome, market, f"o{number}", books[number % 4]) for number in range(40)]
            for goal in (4, 20):
                eventually(partial(has_come_to, asked, goal), timeout_s=60)
                crash(server)
                server.wait_until_ready()
            said = [each.result() for each in asked]
        for number, first in enumerate(said):
            if first != "OK":
                eventually(partial(is_over, market, f"o{number}"), timeout_s=40)
        adds_up(market)
        assert said.count("OK") >= 10
        with psycopg.connect(f"host={server.directory} user=postgres dbname=postgres") as connection:
            left = connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
        assert left == [], "nobody is left in doubt"


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of its own."""
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system here: that is root's right")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(directory: Path) -> Path:
    """Take all the room there is."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
        try:
            while True:
                file.write(b"\0")
        except OSError:
            pass
    return ballast


@pytest.mark.parametrize(
    "way", ["saga", pytest.param("tcc", marks=pytest.mark.slow), pytest.param("outbox", marks=pytest.mark.slow)]
)
def test_a_full_disk_stops_purchases_and_loses_none(tmp_path: Path, way: str) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk, open_market(disk, way, copies=200) as market:
        assert outcome(market, "before") == "OK"
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(outcome, market, f"o{number}") for number in range(24)]
            eventually(partial(has_come_to, asked, 4), timeout_s=30)
            ballast = fill(disk)
            assert any(each.result() != "OK" for each in asked), "the disk is full, and it shows"
            assert outcome(market, "full") not in ("OK", "FAILED_PRECONDITION")
        ballast.unlink()
        for name in (*(f"o{number}" for number in range(24)), "full"):
            eventually(partial(is_over, market, name), timeout_s=40)
        assert outcome(market, "after") == "OK"
        adds_up(market)
