"""The same purchase by five ways, on the same services: what each promises, and what it does not."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from apps.bookstore import history
from apps.bookstore.audit import Report
from apps.bookstore.reckoning import reckon
from apps.transactions.audit import Effect, Ended, check
from apps.transactions.context import BranchCall, Op
from proto.bookstore.v1 import accounts_pb2, notification_pb2, orders_pb2, payment_pb2, warehouse_pb2
from tests.apps.bookstore.shop import Market, open_market
from tests.postgres import running
from tests.waiting import eventually

SAFE = ("saga", "tcc", "outbox", "xa")
BOOK, PRICE, MERCHANT = "two-generals", 1990, "byzantine-house"
COPIES = 200
"""Of a title."""


@pytest.fixture(scope="module", params=SAFE)
def market(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param != "xa":
        with open_market(directory, request.param, copies=COPIES) as opened:
            yield opened
        return
    with running() as server, open_market(directory, "xa", server.one_a_service(), COPIES) as opened:
        yield opened


def buy(market: Market, order_id: str, reader: str, book: str = BOOK, copies: int = 1) -> orders_pb2.Order:
    request = orders_pb2.PurchaseRequest(order_id=order_id, reader=reader, book=book, copies=copies)
    return market.orders.Purchase(request, timeout=10)


def refused(market: Market, *purchase: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        buy(market, *purchase)
    error: Any = caught.value
    return error.code(), error.details()


def balance(market: Market, reader: str) -> int:
    return market.accounts.GetBalance(accounts_pb2.GetBalanceRequest(reader=reader), timeout=5).balance_cents


def copies(market: Market, book: str = BOOK) -> int:
    return market.warehouse.GetStock(warehouse_pb2.GetStockRequest(book=book), timeout=5).copies


def merchant(market: Market) -> payment_pb2.Merchant:
    return market.payment.GetMerchant(payment_pb2.GetMerchantRequest(merchant=MERCHANT), timeout=5)


def is_settled(market: Market, order_id: str) -> bool:
    order = market.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order_id), timeout=5)
    return order.state == orders_pb2.Order.SETTLED


def adds_up(market: Market) -> Report:
    """The report, once no order is open and the bank has paid everything."""

    def look() -> Report | None:
        report = reckon(market.directory, market.url)
        return None if report.open_orders else report

    report = eventually(look, timeout_s=30)
    assert report is not None
    assert report.wrong == ()
    assert report.money_cents.expected == report.money_cents.found
    assert report.stock.expected == report.stock.found
    return report


def test_a_purchase_moves_money_and_books_once_and_is_told_to_the_reader(market: Market) -> None:
    before, earned = copies(market), merchant(market).earned_cents
    for _ in range(2):
        assert buy(market, "whole-1", "wanda", copies=2).order_id == "whole-1"
    eventually(lambda: is_settled(market, "whole-1"), timeout_s=10)
    assert balance(market, "wanda") == 10_000 - 2 * PRICE
    assert copies(market) == before - 2
    assert merchant(market).earned_cents == earned + 2 * PRICE
    asked = notification_pb2.ListNoticesRequest(reader="wanda")
    notices = eventually(lambda: list(market.notification.ListNotices(asked, timeout=5).notices), timeout_s=10)
    assert [each.text for each in notices or ()] == [f'2 of "{BOOK}": bought for 39.80']
    adds_up(market)


def test_a_refusal_leaves_nothing_behind(market: Market) -> None:
    before = copies(market)
    code, text = refused(market, "poor-1", "paul", BOOK, 6)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "paul" in text
    assert refused(market, "poor-1", "paul", BOOK, 6) == (code, text), "asked again, it is refused in the same words"
    assert balance(market, "paul") == 10_000
    code, text = refused(market, "none-1", "nora", "no-such-book", 1)
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, 'no book "no-such-book" in the catalogue')
    report = adds_up(market)
    assert copies(market) == before
    assert report.orders["REJECTED"] >= 2


def test_sold_out_is_said_by_whoever_comes_last(market: Market) -> None:
    left = copies(market, "deep-currents")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: buy(market, f"rush-{i}", f"rita-{i}", "deep-currents", 10), range(left // 10 - 1)))
        last = list(pool.map(lambda i: _outcome(market, f"last-{i}", f"lars-{i}"), range(2)))
    assert sorted(last) == ["FAILED_PRECONDITION", "OK"], "there are books for one of the two"
    assert copies(market, "deep-currents") == 0 + left % 10
    adds_up(market)


def _outcome(market: Market, order_id: str, reader: str) -> str:
    try:
        buy(market, order_id, reader, "deep-currents", 10)
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (-1, "amount_cents: -1 is out of range; 1 to 100000000000 is needed"),
        (0, "amount_cents: 0 is out of range"),
        (2**63 - 1, "amount_cents: 9223372036854775807 is out of range"),
    ],
)
def test_an_amount_that_cannot_be_is_refused_and_nothing_is_written(market: Market, cents: int, text: str) -> None:
    for as_branch in (False, True):
        metadata = BranchCall(f"bad{cents}", "debit", Op.TRY).metadata() if as_branch else ()
        wanted = accounts_pb2.DebitRequest(order_id=f"bad{cents}", reader="max", amount_cents=cents)
        for method in (market.accounts.Hold, market.accounts.Debit):
            with pytest.raises(grpc.RpcError) as caught:
                method(wanted, metadata=metadata, timeout=5)
            error: Any = caught.value
            assert error.code() is (grpc.StatusCode.ABORTED if as_branch else grpc.StatusCode.INVALID_ARGUMENT)
            assert text in error.details()
    assert balance(market, "max") == 10_000
    adds_up(market)


def test_the_bank_pays_out_what_was_earned_though_it_lies(market: Market) -> None:
    for number in range(5):
        buy(market, f"bank-{number}", f"bea-{number}")

    def is_paid() -> bool:
        found = merchant(market)
        return found.earned_cents == found.paid_out_cents > 0

    eventually(is_paid, timeout_s=30)
    adds_up(market)


@pytest.mark.parametrize(
    "victims",
    [
        ("orders",),
        ("transactions", "warehouse"),
        pytest.param(("accounts", "warehouse"), marks=pytest.mark.slow),
        pytest.param(("payment", "bank"), marks=pytest.mark.slow),
    ],
)
def test_whoever_is_killed_in_the_middle_nothing_is_lost(market: Market, victims: tuple[str, ...]) -> None:
    name = "-".join(victims)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_outcome_of, market, f"{name}-{i}", f"kim-{i}") for i in range(20)]
        eventually(lambda: any(each.done() for each in asked), timeout_s=20)
        market.kill(*victims)
        market.restart(*victims)
        for each in asked:
            each.result()
    market.until_up()
    outcomes = []
    for number in range(20):  # whoever was told nothing asks again

        def outcome(number: int = number) -> str | None:
            said = _outcome_of(market, f"{name}-{number}", f"kim-{number}")
            return said if said in ("OK", "FAILED_PRECONDITION") else None

        outcomes.append(eventually(outcome, timeout_s=30))
    assert outcomes.count("OK") >= 10
    assert market.way in ("tcc", "xa") or outcomes.count("OK") == 20, "only what was undecided is given up after a time"
    adds_up(market)


def test_the_whole_history_keeps_the_invariants(market: Market) -> None:
    """The last test of a way, so that it judges what all the others did."""
    if market.way == "outbox":
        pytest.skip("its history is not in the coordinator's log")
    adds_up(market)
    facts = history.read(market.directory, market.way, market.url)
    assert check(facts, limit_s=history.LIMIT_S) == []
    assert sum(isinstance(each, Ended) and each.state == "succeeded" for each in facts) >= 20
    # And it would notice: an effect that is forgotten, a transaction that never ended.
    shorter = [
        each for each in facts if not (isinstance(each, Effect) and each.gid == "whole-1" and each.branch == "credit")
    ]
    assert {each.invariant for each in check(shorter)} >= {"I1", "I4"}


def _outcome_of(market: Market, order_id: str, reader: str) -> str:
    try:
        buy(market, order_id, reader, "at-least-once", 1)
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


def test_naive_loses_money_as_soon_as_somebody_dies(tmp_path: Path) -> None:
    with open_market(tmp_path, "naive") as market:
        assert buy(market, "calm-1", "carl").state == orders_pb2.Order.SETTLED
        adds_up(market)
        market.kill("payment")
        code, _ = refused(market, "half-1", "hugo", BOOK, 1)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert adds_up(market).orders["REJECTED"] == 1, "what can be taken back is"
        market.restart("payment")
        market.until_up()
        market.programs["payment"].process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(_outcome_of, market, "dead-1", "dora")
            eventually(lambda: balance(market, "dora") < 10_000, timeout_s=10)
            market.kill("orders")
            assert asked.result() == "UNAVAILABLE"
        report = reckon(market.directory, patience_s=0.0)
        assert report.money_cents.found < report.money_cents.expected
        assert any("debited" in each and "for nothing" in each for each in report.wrong)
