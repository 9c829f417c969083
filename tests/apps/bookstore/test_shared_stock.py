"""Four warehouses, of two versions, with one stock between them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
import pytest

from apps.bookstore.catalogue import BOOKS, DEFAULT_COPIES, Book
from apps.bookstore.database import look, open_engine, open_read_only, transact
from apps.bookstore.warehouse import shelf
from proto.bookstore.v1 import warehouse_pb2, warehouse_pb2_grpc
from tests.apps.bookstore.shop import Program, running

INSTANCES = [("v1", "a"), ("v1", "b"), ("v2", "c"), ("v2", "d")]


@dataclass
class Warehouses:
    directory: Path
    programs: list[Program]
    stubs: list[warehouse_pb2_grpc.WarehouseStub]

    def on_shelf(self, book: str) -> int:
        engine = open_read_only(self.directory / shelf.FILE)
        found = look(engine, shelf.stock, book)
        engine.dispose()
        assert found is not None
        return found.copies

    def deliver(self, book: str, copies: int) -> None:
        engine = open_engine(self.directory / shelf.FILE)
        transact(engine, shelf.prepare, [shelf_book(book)], copies)
        engine.dispose()

    def take(self, instance: int, order_id: str, book: str, copies: int) -> warehouse_pb2.TakeResponse | None:
        """None: sold out."""
        request = warehouse_pb2.TakeRequest(order_id=order_id, book=book, copies=copies)
        try:
            return self.stubs[instance].Take(request, timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error.details()
            return None


def shelf_book(name: str) -> Book:
    return Book(name, name, 100)


@pytest.fixture(scope="module")
def warehouses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouses]:
    """Started at once on a directory that does not exist yet."""
    directory = tmp_path_factory.mktemp("stock") / "new"
    with ExitStack() as stack:
        programs = [
            stack.enter_context(running(directory, "warehouse", VERSION=version, INSTANCE=name))
            for version, name in INSTANCES
        ]
        channels = [stack.enter_context(grpc.insecure_channel(program.target)) for program in programs]
        yield Warehouses(directory, programs, [warehouse_pb2_grpc.WarehouseStub(channel) for channel in channels])


def test_the_shelf_is_filled_once_whoever_starts_first(warehouses: Warehouses) -> None:
    for book in BOOKS:
        assert warehouses.on_shelf(book.id) == DEFAULT_COPIES


def test_each_instance_says_who_it_is(warehouses: Warehouses) -> None:
    request = warehouse_pb2.GetStockRequest(book=BOOKS[0].id)
    answers = [stub.GetStock(request, timeout=20) for stub in warehouses.stubs]
    assert [(answer.version, answer.instance) for answer in answers] == INSTANCES
    assert {(answer.copies, answer.price_cents) for answer in answers} == {(DEFAULT_COPIES, BOOKS[0].price_cents)}


def test_no_copy_is_sold_twice(warehouses: Warehouses) -> None:
    warehouses.deliver("scarce", 150)
    chance = Random(11)
    orders = [(chance.randrange(4), f"scarce-{number}", chance.randint(1, 3)) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda order: warehouses.take(order[0], order[1], "scarce", order[2]), orders))
    sold = sum(order[2] for order, answer in zip(orders, answers, strict=True) if answer is not None)
    assert None in answers
    assert warehouses.on_shelf("scarce") == 150 - sold
    assert 0 <= 150 - sold < 3
    assert {answer.instance for answer in answers if answer is not None} == {"a", "b", "c", "d"}


def test_an_order_that_asks_everywhere_at_once_takes_once_and_gets_one_answer(warehouses: Warehouses) -> None:
    warehouses.deliver("popular", 150)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: warehouses.take(number % 4, "everywhere", "popular", 2), range(24)))
    assert warehouses.on_shelf("popular") == 148
    assert answers[0] is not None and answers == [answers[0]] * 24


def test_a_killed_instance_leaves_nothing_half_done_and_the_others_go_on(warehouses: Warehouses) -> None:
    warehouses.deliver("steady", 1000)
    killed = 0

    def take(number: int) -> int:
        """Copies that were surely taken; the ones asked from the killed instance may have been."""
        if number == 60:
            warehouses.programs[killed].kill()
        try:
            return 1 if warehouses.take(number % 4, f"steady-{number}", "steady", 1) is not None else 0
        except AssertionError:
            assert number % 4 == killed
            return 0

    with ThreadPoolExecutor(8) as pool:
        sure = sum(pool.map(take, range(160)))
    again = [warehouses.take(1 + number % 3, f"steady-{number}", "steady", 1) for number in range(160)]
    assert sure >= 100
    assert None not in again
    assert warehouses.on_shelf("steady") == 1000 - 160
