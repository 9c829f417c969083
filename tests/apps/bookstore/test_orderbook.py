"""Who looks after an order, and when."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from apps.bookstore.database import DatabaseAway, look, open_engine, open_read_only, transact
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import FURTHEST_DUE_MS, Order, State
from apps.bookstore.orders.settler import LONGEST_BACKOFF_MS, backoff_ms
from apps.bookstore.refusals import Reason

NOW = 1_000_000


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path / "orders.sqlite3")
    transact(engine, orderbook.prepare)
    yield engine
    engine.dispose()


def record(book: Engine, order_id: str, due_ms: int) -> None:
    transact(book, orderbook.record, Order(order_id, "ann", "deep-currents", 1), NOW, due_ms)


def claim(book: Engine, now_ms: int, most: int = 10) -> list[str]:
    return [order.order_id for order in transact(book, orderbook.claim, now_ms, now_ms + 5000, most)]


def test_an_order_is_left_to_its_buyers_call_until_it_is_due(book: Engine) -> None:
    record(book, "a", NOW + 1000)
    assert claim(book, NOW + 999) == []
    assert claim(book, NOW + 1000) == ["a"]


def test_what_one_settler_has_claimed_is_not_for_another_until_the_claim_ends(book: Engine) -> None:
    for number in range(5):
        record(book, f"o{number}", NOW + number)
    assert claim(book, NOW + 100, most=3) == ["o0", "o1", "o2"]
    assert claim(book, NOW + 100, most=3) == ["o3", "o4"]
    assert claim(book, NOW + 100) == []
    assert claim(book, NOW + 5100) == ["o0", "o1", "o2", "o3", "o4"]


def test_an_order_that_is_put_off_comes_back(book: Engine) -> None:
    record(book, "a", NOW)
    transact(book, orderbook.put_off, "a", NOW + 300)
    assert not look(book, orderbook.is_any_due, NOW + 299)
    assert look(book, orderbook.is_any_due, NOW + 300)


def test_a_clock_that_was_set_back_holds_no_order_up(book: Engine) -> None:
    record(book, "a", NOW + 1000)
    assert claim(book, NOW + 1000 - FURTHEST_DUE_MS) == [], "may have been put off as far as that"
    assert claim(book, NOW - 3_600_000) == ["a"]


def test_a_closed_order_is_never_due_again_nor_put_off(book: Engine) -> None:
    record(book, "settled", NOW)
    record(book, "rejected", NOW)
    transact(book, orderbook.taken, "settled", 999, "v1", "a")
    transact(book, orderbook.settled, "settled")
    transact(book, orderbook.rejected, "rejected", Reason.SOLD_OUT, "sold out")
    for order_id in ("settled", "rejected"):
        transact(book, orderbook.put_off, order_id, NOW)
    assert claim(book, NOW + FURTHEST_DUE_MS) == []


def test_whoever_comes_second_finds_how_far_the_first_has_brought_it(book: Engine) -> None:
    record(book, "a", NOW)
    first = transact(book, orderbook.taken, "a", 999, "v1", "a")
    second = transact(book, orderbook.taken, "a", 111, "v2", "b")
    assert first == second
    assert (first.state, first.amount_cents, first.warehouse_instance) == (State.TAKEN, 999, "a")
    assert transact(book, orderbook.settled, "a").state is State.SETTLED
    late = transact(book, orderbook.rejected, "a", Reason.SOLD_OUT, "too late")
    assert (late.state, late.refusal) == (State.SETTLED, None)


def test_nothing_is_charged_before_it_is_taken(book: Engine) -> None:
    record(book, "a", NOW)
    assert transact(book, orderbook.settled, "a").state is State.PENDING


def test_orders_are_put_off_for_longer_every_time_up_to_a_bound() -> None:
    spread = [[backoff_ms(tries) for _ in range(200)] for tries in range(12)]
    assert all(125 <= wait <= 250 for wait in spread[0])
    assert all(250 <= wait <= 500 for wait in spread[1])
    assert all(LONGEST_BACKOFF_MS / 2 <= wait <= LONGEST_BACKOFF_MS for wait in spread[11])


def test_a_file_that_is_locked_for_too_long_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.bookstore.database.BUSY_TIMEOUT_S", 0.05)
    mine, other = open_engine(tmp_path / "x.sqlite3"), open_engine(tmp_path / "x.sqlite3")
    transact(mine, orderbook.prepare)
    with mine.connect() as connection, connection.begin():
        with pytest.raises(DatabaseAway, match=r"x\.sqlite3: database is locked"):
            transact(other, orderbook.put_off, "a", 1)
        assert not look(other, orderbook.is_any_due, NOW), "who only reads does not wait"
    transact(other, orderbook.put_off, "a", 1)
    mine.dispose()
    other.dispose()


def test_who_only_looks_cannot_write(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "x.sqlite3")
    transact(engine, orderbook.prepare)
    reader = open_read_only(tmp_path / "x.sqlite3")
    with pytest.raises(DatabaseAway, match="readonly"):
        look(reader, orderbook.put_off, "a", 1)
    reader.dispose()
    engine.dispose()


def test_a_transaction_that_fails_leaves_nothing(book: Engine) -> None:
    def half(tx: object) -> None:
        orderbook.record(tx, Order("half", "ann", "deep-currents", 1), NOW, NOW)  # type: ignore[arg-type]
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        transact(book, half)
    assert look(book, orderbook.find, "half") is None
