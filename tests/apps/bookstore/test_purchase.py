"""What a buyer can rely on."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from apps.bookstore.catalogue import Book
from apps.bookstore.database import open_engine, transact
from apps.bookstore.warehouse import shelf
from proto.bookstore.v1 import accounts_pb2, orders_pb2, warehouse_pb2
from tests.apps.bookstore.shop import Shop

BOOK = "deep-currents"
PRICE_CENTS = 999
OPENING_CENTS = 10_000


def buy(shop: Shop, order_id: str, *, reader: str = "ann", book: str = BOOK, copies: int = 1) -> orders_pb2.Order:
    request = orders_pb2.PurchaseRequest(order_id=order_id, reader=reader, book=book, copies=copies)
    return shop.orders.Purchase(request, timeout=10)


def balance(shop: Shop, reader: str) -> int:
    return shop.accounts.GetBalance(accounts_pb2.GetBalanceRequest(reader=reader), timeout=10).balance_cents


def stock(shop: Shop, book: str) -> int:
    return shop.warehouse.GetStock(warehouse_pb2.GetStockRequest(book=book), timeout=10).copies


def details(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    return error.value.details() or ""


def reason(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    status = rpc_status.from_call(error.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.domain == "bookstore"
    return str(info.reason)


def test_a_purchase_moves_books_and_money(shop: Shop) -> None:
    before = stock(shop, "quorum-cooking")
    order = buy(shop, "moves", reader="bea", book="quorum-cooking", copies=2)
    assert order.state == orders_pb2.Order.SETTLED
    assert (order.amount_cents, order.repeated_calls) == (6600, 0)
    assert (order.warehouse_version, order.warehouse_instance) == ("v1", "warehouse-a")
    assert stock(shop, "quorum-cooking") == before - 2
    assert balance(shop, "bea") == OPENING_CENTS - 6600


def test_asking_again_buys_nothing_more_and_gets_the_same_answer(shop: Shop) -> None:
    first = buy(shop, "again", reader="cem", copies=3)
    assert [buy(shop, "again", reader="cem", copies=3) for _ in range(3)] == [first] * 3
    assert balance(shop, "cem") == OPENING_CENTS - 3 * PRICE_CENTS
    assert shop.orders.GetOrder(orders_pb2.GetOrderRequest(order_id="again"), timeout=10) == first


def test_the_same_request_twenty_times_at_once_buys_once(shop: Shop) -> None:
    before = stock(shop, "lease-of-life")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: buy(shop, "at-once", reader="dan", book="lease-of-life"), range(20)))
    assert {answer.state for answer in answers} == {orders_pb2.Order.SETTLED}
    assert stock(shop, "lease-of-life") == before - 1
    assert balance(shop, "dan") == OPENING_CENTS - 1575


def test_readers_buy_on_account(shop: Shop) -> None:
    buy(shop, "on-account", reader="eve", copies=100)
    assert balance(shop, "eve") == OPENING_CENTS - 100 * PRICE_CENTS < 0


@pytest.mark.parametrize("other", [{"copies": 2}, {"reader": "gus"}, {"book": "at-least-once"}])
def test_an_order_id_cannot_stand_for_two_purchases(shop: Shop, other: dict[str, Any]) -> None:
    buy(shop, "taken-id", reader="fay")
    with pytest.raises(grpc.RpcError) as error:
        buy(shop, "taken-id", **{"reader": "fay", **other})
    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert 'order "taken-id" stands for another purchase: 1 of "deep-currents" for "fay"' in details(error)
    assert reason(error) == "ORDER_DIFFERS"
    assert balance(shop, "fay") == OPENING_CENTS - PRICE_CENTS


def test_what_is_sold_out_is_refused_for_good_and_never_charged(shop: Shop) -> None:
    engine = open_engine(shop.directory / shelf.FILE)
    rare = Book("rare", "Rare", 500)
    transact(engine, shelf.prepare, [rare], 2)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as error:
            buy(shop, "too-many", reader="hal", book="rare", copies=3)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(error) == 'sold out: 3 of "rare" wanted, 2 on the shelf'
        assert reason(error) == "SOLD_OUT"
    order = shop.orders.GetOrder(orders_pb2.GetOrderRequest(order_id="too-many"), timeout=10)
    assert (order.state, order.amount_cents) == (orders_pb2.Order.REJECTED, 0)
    assert order.refusal == 'sold out: 3 of "rare" wanted, 2 on the shelf'
    assert balance(shop, "hal") == OPENING_CENTS
    assert stock(shop, "rare") == 2
    assert buy(shop, "just-enough", reader="hal", book="rare", copies=2).state == orders_pb2.Order.SETTLED
    engine.dispose()


def test_an_order_that_was_refused_is_not_filled_by_a_request_that_comes_late(shop: Shop) -> None:
    engine = open_engine(shop.directory / shelf.FILE)
    request = warehouse_pb2.TakeRequest(order_id="late", book="later", copies=1)
    with pytest.raises(grpc.RpcError) as refused:
        shop.warehouse.Take(request, timeout=10)
    transact(engine, shelf.prepare, [Book("later", "Later", 500)], 5)
    with pytest.raises(grpc.RpcError) as refused_again:
        shop.warehouse.Take(request, timeout=10)
    assert details(refused_again) == details(refused) == 'no book "later" in the catalogue'
    assert refused_again.value.code() is grpc.StatusCode.NOT_FOUND
    assert stock(shop, "later") == 5
    engine.dispose()


def test_what_does_not_exist_is_not_found(shop: Shop) -> None:
    with pytest.raises(grpc.RpcError) as no_order:
        shop.orders.GetOrder(orders_pb2.GetOrderRequest(order_id="never"), timeout=10)
    assert (no_order.value.code(), details(no_order)) == (grpc.StatusCode.NOT_FOUND, 'no order "never"')
    with pytest.raises(grpc.RpcError) as no_book:
        stock(shop, "never")
    assert no_book.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as no_purchase:
        buy(shop, "no-book", book="never")
    assert reason(no_purchase) == "NO_SUCH_BOOK"


def test_an_order_cannot_be_charged_twice_differently(shop: Shop) -> None:
    charge = accounts_pb2.ChargeRequest(order_id="charged", reader="ida", amount_cents=100)
    first = shop.accounts.Charge(charge, timeout=10)
    assert shop.accounts.Charge(charge, timeout=10) == first
    charge.amount_cents = 200
    with pytest.raises(grpc.RpcError) as error:
        shop.accounts.Charge(charge, timeout=10)
    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert 'order "charged" was charged before: 100 cents to "ida", not 200' in details(error)
    assert balance(shop, "ida") == OPENING_CENTS - 100


GOOD: dict[str, Any] = {"order_id": "input", "reader": "jan", "book": BOOK, "copies": 1, "amount_cents": 1}
LONG = "x" * 65


@pytest.mark.parametrize(
    ("call", "field", "value", "complaint"),
    [
        ("Purchase", "order_id", "", "is missing; it must be given"),
        ("Purchase", "order_id", LONG, "is too long (65 characters); at most 64 are allowed"),
        ("Purchase", "order_id", "a/b", '"a/b" has characters that are not allowed'),
        ("Purchase", "order_id", "näher", '"näher" has characters that are not allowed'),
        ("Purchase", "reader", "", "is missing"),
        ("Purchase", "reader", LONG, "is too long"),
        ("Purchase", "reader", "a\nb", r'"a\u000ab" has characters that cannot be printed'),
        ("Purchase", "book", "", "is missing"),
        ("Purchase", "book", "\0", r'"\u0000" has characters that cannot be printed'),
        ("Purchase", "copies", 0, "0 is out of range; 1 to 100 is needed"),
        ("Purchase", "copies", -1, "-1 is out of range; 1 to 100 is needed"),
        ("Purchase", "copies", 101, "101 is out of range; 1 to 100 is needed"),
        ("Purchase", "copies", 2**31 - 1, "2147483647 is out of range"),
        ("GetOrder", "order_id", "", "is missing"),
        ("Take", "order_id", LONG, "is too long"),
        ("Take", "book", "", "is missing"),
        ("Take", "copies", -(2**31), "-2147483648 is out of range"),
        ("GetStock", "book", LONG, "is too long"),
        ("Charge", "order_id", "a b", "has characters that are not allowed"),
        ("Charge", "reader", "", "is missing"),
        ("Charge", "amount_cents", 0, "0 is out of range; 1 to 100000000000 is needed"),
        ("Charge", "amount_cents", -5, "-5 is out of range"),
        ("Charge", "amount_cents", 2**63 - 1, "9223372036854775807 is out of range"),
        ("GetBalance", "reader", "\u202e", r'"\u202e" has characters that cannot be printed'),
    ],
)
def test_bad_input_is_refused_by_field_and_value(
    shop: Shop, call: str, field: str, value: str | int, complaint: str
) -> None:
    for module, stub in ((orders_pb2, shop.orders), (warehouse_pb2, shop.warehouse), (accounts_pb2, shop.accounts)):
        if hasattr(stub, call):
            message = getattr(module, f"{call}Request")
            method = getattr(stub, call)
    fields = {name: GOOD[name] for name in message.DESCRIPTOR.fields_by_name}
    with pytest.raises(grpc.RpcError) as error:
        method(message(**{**fields, field: value}), timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(error).startswith(f"{field}: ")
    assert complaint in details(error)
    assert reason(error) == "BAD_FIELD"
    bad = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error.value).details[1].Unpack(bad)
    assert [each.field for each in bad.field_violations] == [field]


def test_all_faults_of_a_request_are_named_at_once(shop: Shop) -> None:
    with pytest.raises(grpc.RpcError) as error:
        shop.orders.Purchase(orders_pb2.PurchaseRequest(order_id="-", copies=-3), timeout=10)
    assert details(error) == (
        "reader: is missing; it must be given; book: is missing; it must be given; "
        "copies: -3 is out of range; 1 to 100 is needed"
    )


def test_a_request_that_was_refused_left_no_trace(shop: Shop) -> None:
    with pytest.raises(grpc.RpcError):
        buy(shop, "no-trace", copies=0)
    with pytest.raises(grpc.RpcError) as error:
        shop.orders.GetOrder(orders_pb2.GetOrderRequest(order_id="no-trace"), timeout=10)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_message_that_is_too_large_is_refused(shop: Shop) -> None:
    with pytest.raises(grpc.RpcError) as error:
        buy(shop, "x" * 100_000)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("service", ["Orders", "Warehouse", "Accounts"])
def test_every_service_tells_its_health_and_describes_itself(shop: Shop, service: str) -> None:
    name = f"bookstore.v1.{service}"
    with grpc.insecure_channel(shop.targets[service.lower()]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for asked in ("", name):
            answer = health.Check(health_pb2.HealthCheckRequest(service=asked), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=10)))
        assert name in [each.name for each in listed.list_services_response.service]
