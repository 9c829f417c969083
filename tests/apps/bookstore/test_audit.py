"""An audit that finds nothing is worth as much as the faults that it would have found."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.bookstore import seed
from apps.bookstore.accounts import ledger
from apps.bookstore.audit import Count, audit, main, table
from apps.bookstore.database import DatabaseAway, open_engine, transact
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order
from apps.bookstore.warehouse import shelf

KEEPER = shelf.Keeper("v1", "a")


class Books:
    """The three databases, written without servers, the way the services would."""

    def __init__(self, directory: Path) -> None:
        seed.seed(directory, 100)
        self.orders = open_engine(directory / orderbook.FILE)
        self.warehouse = open_engine(directory / shelf.FILE)
        self.accounts = open_engine(directory / ledger.FILE)

    def record(self, order_id: str, copies: int = 2) -> None:
        order = Order(order_id, "ann", "deep-currents", copies)
        transact(self.orders, orderbook.record, order, 1, 2)

    def take(self, order_id: str, copies: int = 2) -> shelf.Taking:
        return transact(self.warehouse, shelf.take, order_id, "deep-currents", copies, KEEPER, 1)

    def note_taken(self, order_id: str) -> None:
        transact(self.orders, orderbook.taken, order_id, 1998, "v1", "a")

    def charge(self, order_id: str) -> None:
        transact(self.accounts, ledger.charge, order_id, "ann", 1998, 1)

    def note_settled(self, order_id: str) -> None:
        transact(self.orders, orderbook.settled, order_id)

    def settle(self, order_id: str) -> None:
        for step in (self.record, self.take, self.note_taken, self.charge, self.note_settled):
            step(order_id)

    def reject(self, order_id: str) -> None:
        self.record(order_id, 101)
        refused = self.take(order_id, 101)
        assert refused.refusal is not None
        transact(self.orders, orderbook.rejected, order_id, refused.refusal, refused.explanation)

    def close(self) -> None:
        for engine in (self.orders, self.warehouse, self.accounts):
            engine.dispose()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One order in each state, and a second one settled."""
    directory = tmp_path_factory.mktemp("books") / "original"
    books = Books(directory)
    books.settle("settled")
    books.settle("settled-2")
    books.reject("rejected")
    for step in (books.record, books.take, books.note_taken):
        step("taken")
    books.record("pending")
    books.close()
    return directory


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(original, tmp_path / "copy")


def plant(directory: Path, file: str, sql: str) -> None:
    with sqlite3.connect(directory / file) as connection:
        assert connection.execute(sql).rowcount == 1
    connection.close()


def test_a_shop_where_all_is_well(directory: Path) -> None:
    report = audit(directory)
    assert report.wrong == ()
    assert report.money_cents == Count(3996, 3996)
    assert report.stock == Count(794, 794)
    assert report.orders == {"PENDING": 1, "TAKEN": 1, "SETTLED": 2, "REJECTED": 1}
    assert (report.is_clean, report.open_orders) == (True, 2)


@pytest.mark.parametrize("step", ["take", "charge"])
def test_what_is_done_but_not_yet_noted_is_under_way_and_not_wrong(directory: Path, step: str) -> None:
    books = Books(directory)
    before = audit(directory)
    books.take("pending") if step == "take" else books.charge("taken")
    books.close()
    report = audit(directory)
    assert report.wrong == ()
    assert report.stock.found == before.stock.found - (2 if step == "take" else 0) == report.stock.expected
    assert report.money_cents.found == before.money_cents.found + (1998 if step == "charge" else 0)
    assert report.money_cents.expected == report.money_cents.found


ORDERS, WAREHOUSE, ACCOUNTS = orderbook.FILE, shelf.FILE, ledger.FILE


@pytest.mark.parametrize(
    ("file", "sql", "wrong", "counts"),
    [
        (
            ACCOUNTS,
            "UPDATE tills SET balance_cents = balance_cents - 500",
            ["till: 34.96 found, 39.96 expected from 2 charges"],
            (Count(3996, 3496), Count(794, 794)),
        ),
        (
            ACCOUNTS,
            "UPDATE wallets SET balance_cents = balance_cents + 1",
            ["wallet of ann: 60.05 found, 60.04 expected"],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            ACCOUNTS,
            "DELETE FROM charges WHERE order_id = 'settled'",
            [
                "order settled (SETTLED): 19.98 were never charged",
                "till: 39.96 found, 19.98 expected from 1 charges",
                "wallet of ann: 60.04 found, 80.02 expected",
            ],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            ACCOUNTS,
            "UPDATE charges SET amount_cents = 1000 WHERE order_id = 'settled'",
            [
                "order settled (SETTLED): 19.98 from ann, but accounts charged 10.00 to ann",
                "till: 39.96 found, 29.98 expected from 2 charges",
                "wallet of ann: 60.04 found, 70.02 expected",
            ],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            WAREHOUSE,
            "UPDATE shelf SET copies = copies - 1 WHERE book = 'deep-currents'",
            ["shelf: 93 of deep-currents found, 94 expected (100 delivered)"],
            (Count(3996, 3996), Count(794, 793)),
        ),
        (
            WAREHOUSE,
            "DELETE FROM takings WHERE order_id = 'taken'",
            [
                "order taken (TAKEN): took nothing from the shelf",
                "shelf: 94 of deep-currents found, 96 expected (100 delivered)",
            ],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            WAREHOUSE,
            "UPDATE takings SET refusal = '' WHERE order_id = 'rejected'",
            [
                "order rejected (REJECTED): took 101 of deep-currents from the shelf all the same",
                "shelf: 94 of deep-currents found, -7 expected (100 delivered)",
            ],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            WAREHOUSE,
            "UPDATE takings SET book = 'at-least-once' WHERE order_id = 'settled'",
            [
                "order settled (SETTLED): 2 of deep-currents for 19.98, but the warehouse gave 2 of at-least-once for 19.98",
                "shelf: 100 of at-least-once found, 98 expected (100 delivered)",
                "shelf: 94 of deep-currents found, 96 expected (100 delivered)",
            ],
            (Count(3996, 3996), Count(794, 794)),
        ),
        (
            ORDERS,
            "DELETE FROM orders WHERE order_id = 'settled'",
            [
                "2 of deep-currents were taken for order settled, which does not exist",
                "19.98 were charged for order settled, which does not exist",
            ],
            (Count(1998, 3996), Count(796, 794)),
        ),
        (
            ORDERS,
            "UPDATE orders SET state = 'REJECTED' WHERE order_id = 'settled'",
            [
                "order settled (REJECTED): took 2 of deep-currents from the shelf all the same",
                "order settled (REJECTED): was charged 19.98 all the same",
            ],
            (Count(1998, 3996), Count(796, 794)),
        ),
        (
            ORDERS,
            "UPDATE orders SET state = 'PENDING' WHERE order_id = 'settled'",
            ["order settled (PENDING): was charged 19.98 before it had its books"],
            (Count(1998, 3996), Count(794, 794)),
        ),
        (
            ORDERS,
            "UPDATE orders SET state = 'SETTLED' WHERE order_id = 'pending'",
            [
                "order pending (SETTLED): took nothing from the shelf",
                "order pending (SETTLED): 0.00 were never charged",
            ],
            (Count(3996, 3996), Count(792, 794)),
        ),
    ],
)
def test_a_planted_fault_is_found_and_named(
    directory: Path, file: str, sql: str, wrong: list[str], counts: tuple[Count, Count]
) -> None:
    plant(directory, file, sql)
    report = audit(directory)
    assert list(report.wrong) == wrong
    assert (report.money_cents, report.stock) == counts
    assert not report.is_clean


def test_many_faults_are_cut_short(directory: Path) -> None:
    books = Books(directory)
    for number in range(30):
        books.take(f"stray-{number}", 1)
    books.close()
    lines = table(audit(directory)).splitlines()
    assert lines[0].split() == ["money", "in", "the", "till", "expected", "39.96", "found", "39.96"]
    assert lines[-1] == "wrong: and 10 more"
    assert len(lines) == 3 + 20 + 1


def test_auditing_changes_nothing(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.glob("*.sqlite3")}
    audit(directory)
    assert {path.name: path.read_bytes() for path in directory.glob("*.sqlite3")} == before


def test_where_there_are_no_databases_there_is_nothing_to_count(tmp_path: Path) -> None:
    with pytest.raises(DatabaseAway, match=r"orders\.sqlite3: no such file"):
        audit(tmp_path)
    assert list(tmp_path.iterdir()) == []


def spoil(directory: Path) -> None:
    (directory / orderbook.FILE).write_text("this is no database, whatever its name says")


def close_all(directory: Path) -> None:
    for order_id in ("taken", "pending"):
        plant(directory, ORDERS, f"DELETE FROM orders WHERE order_id = '{order_id}'")
    plant(directory, WAREHOUSE, "DELETE FROM takings WHERE order_id = 'taken'")
    plant(directory, WAREHOUSE, "UPDATE shelf SET copies = copies + 2 WHERE book = 'deep-currents'")


@pytest.mark.parametrize(
    ("prepare", "words", "code", "said"),
    [
        (lambda directory: None, [], 0, "2 SETTLED"),
        (lambda directory: None, ["--settled"], 1, "wrong: 2 orders are still open"),
        (close_all, ["--settled"], 0, "0 PENDING, 0 TAKEN"),
        (
            lambda directory: plant(directory, ACCOUNTS, "UPDATE tills SET balance_cents = 0"),
            [],
            1,
            "wrong: till: 0.00",
        ),
        (spoil, [], 2, "audit: orders.sqlite3: file is not a database"),
    ],
)
def test_the_exit_code_says_whether_all_is_well(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], None],
    words: list[str],
    code: int,
    said: str,
) -> None:
    prepare(directory)
    assert main(["--dir", str(directory), *words]) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_json_for_programs(directory: Path) -> None:
    command = [sys.executable, "-m", "apps.bookstore.audit", "--dir", str(directory), "-o", "json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(result.stdout) == {
        "money_cents": {"expected": 3996, "found": 3996},
        "stock": {"expected": 794, "found": 794},
        "orders": {"PENDING": 1, "TAKEN": 1, "SETTLED": 2, "REJECTED": 1},
        "wrong": [],
    }
    assert result.returncode == 0


def test_seeding_again_delivers_nothing_more(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = audit(directory)
    assert seed.main(["--dir", str(directory), "--copies", "5"]) == 0
    assert audit(directory) == before
    assert seed.main(["--dir", "/dev/null/shop"]) == 2
    assert capsys.readouterr().err == "seed: /dev/null/shop: not a directory\n"
    with pytest.raises(SystemExit):
        seed.main(["--dir", str(directory), "--copies", "-1"])
    assert "--copies: -1 is out of range" in capsys.readouterr().err
