"""What somebody else sees of a purchase, by each way: measured, and equal to the table in the bookstore's README."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from apps.bookstore import movements
from apps.bookstore.accounts import ledger
from apps.bookstore.database import look, open_read_only, place
from proto.bookstore.v1 import accounts_pb2, orders_pb2, warehouse_pb2
from tests.apps.bookstore.shop import Market, open_market
from tests.postgres import running
from tests.tools import ROOT
from tests.waiting import eventually

BOOK: Final = "deep-currents"
COPIES: Final = 40
ENDS: Final = ("OK", "FAILED_PRECONDITION")


@pytest.fixture(params=["saga", "outbox", pytest.param("tcc", marks=pytest.mark.slow),
                        pytest.param("xa", marks=pytest.mark.slow), pytest.param("naive", marks=pytest.mark.slow)])  # fmt: skip
def market(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Market]:
    if request.param != "xa":
        with open_market(tmp_path, request.param, copies=COPIES) as opened:
            yield opened
        return
    with running() as server, open_market(tmp_path, "xa", server.one_a_service(), COPIES) as opened:
        yield opened


def copies(market: Market) -> int:
    return market.warehouse.GetStock(warehouse_pb2.GetStockRequest(book=BOOK), timeout=5).copies


def balance(market: Market, reader: str) -> int:
    return market.accounts.GetBalance(accounts_pb2.GetBalanceRequest(reader=reader), timeout=5).balance_cents


def buy(market: Market, order_id: str, reader: str, wanted: int) -> str:
    request = orders_pb2.PurchaseRequest(order_id=order_id, reader=reader, book=BOOK, copies=wanted)
    try:
        market.orders.Purchase(request, timeout=4)
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


def is_over(market: Market, *purchase: Any) -> bool:
    return buy(market, *purchase) in ENDS


def meanwhile(market: Market) -> str:
    """The merchant's service is stopped in the middle, so that there is a middle to look into."""
    payment = market.programs["payment"].process
    payment.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(buy, market, "first", "ada", 2)
        seen: set[str] = set()

        def has_seen_all() -> bool:
            if copies(market) < COPIES:
                seen.add("books")
            if balance(market, "ada") < ledger.OPENING_CENTS:
                seen.add("money")
            return len(seen) == 2 or (first.done() and not seen)

        # Books and money may change one after the other: it is not over with what is seen first.
        eventually(has_seen_all, timeout_s=20)
        how = "set aside" if "hold" in moved(market, "first") else "gone"
        payment.send_signal(signal.SIGCONT)
    eventually(partial(is_over, market, "first", "ada", 2), timeout_s=40)
    return f"sees {' and '.join(sorted(seen))} {how}" if seen else "sees nothing"


def moved(market: Market, order_id: str) -> list[str]:
    """What was done to wallets for an order, as others could see it."""
    engine = open_read_only(place(market.directory, ledger.FILE, market.url))
    try:
        return [each.kind for each in look(engine, movements.everything) if each.order_id == order_id]
    finally:
        engine.dispose()


def refused(market: Market) -> str:
    """More books than there are: what became of the money for them, as others could see it."""
    left = copies(market)
    for number in range(left // 8):  # no reader can pay for more at once
        eventually(partial(is_over, market, f"all-{number}", f"buyer-{number}", 8), timeout_s=40)
    eventually(partial(is_over, market, "late", "lou", left % 8 + 1), timeout_s=40)
    return " then ".join(moved(market, "late")) or "nothing"


def two_at_once(market: Market) -> str:
    """Each could be paid, both cannot. The warehouse is stopped until both have come as far as they can without it."""
    warehouse = market.programs["warehouse"].process
    warehouse.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(buy, market, f"both-{number}", "cid", 6) for number in range(2)]
        for number in range(2):
            eventually(partial(is_recorded, market, f"both-{number}"))
        for _ in range(20):  # behind these, accounts has answered what it was asked before
            balance(market, "cid")
        warehouse.send_signal(signal.SIGCONT)
        [each.result() for each in both]
    said = sorted(_settled(market, f"both-{number}") for number in range(2))
    return "one is refused" if said != ["SETTLED", "SETTLED"] else f"both are made; the wallet is at {_left(market)}"


def _settled(market: Market, order_id: str) -> str:
    def end() -> str | None:
        order = market.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order_id), timeout=5)
        name = orders_pb2.Order.State.Name(order.state)
        return name if name in ("SETTLED", "REJECTED") else None

    found = eventually(end, timeout_s=40)
    assert found is not None
    return found


def _left(market: Market) -> str:
    return f"{balance(market, 'cid') / 100:.2f}"


def is_recorded(market: Market, order_id: str) -> bool:
    try:
        market.orders.GetOrder(orders_pb2.GetOrderRequest(order_id=order_id), timeout=5)
    except grpc.RpcError:
        return False
    return True


def test_what_the_readme_says_of_isolation_is_so(market: Market) -> None:
    measured = f"| {market.way} | {meanwhile(market)} | {two_at_once(market)} | {refused(market)} |"
    lines = (ROOT / "apps/bookstore/README.md").read_text().splitlines()
    said = [line for line in lines if line.startswith(f"| {market.way} | sees")]
    assert said == [measured]
