"""Counts money and books over all three databases, and says what does not add up.

`python -m apps.bookstore.audit --dir DIR` exits with 0 if all is well, 1 if not, 2 if there is nothing to count.

Theory of operation: three files cannot be read at one moment, and the shop may be open meanwhile. So the orders are read twice. What the first
reading says was done must be found in the files read after it; what is found there must be known to the second reading, because an
order is written down before it has any effect. So whatever is reported is wrong, and not merely under way.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from apps.bookstore.accounts import ledger
from apps.bookstore.accounts.ledger import Charge, Wallet
from apps.bookstore.database import DatabaseAway, look, open_read_only
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order, State
from apps.bookstore.warehouse import shelf
from apps.bookstore.warehouse.shelf import Taking, Title

EXIT_CLEAN: Final = 0
EXIT_WRONG: Final = 1
EXIT_BAD_INPUT: Final = 2
MOST_SHOWN: Final = 20
_HAS_BOOKS: Final = frozenset([State.TAKEN, State.SETTLED])

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the databases hold, in the order in which it was read."""

    before: dict[str, Order]
    titles: Sequence[Title]
    takings: dict[str, Taking]
    wallets: Sequence[Wallet]
    till_cents: int
    charges: dict[str, Charge]
    after: dict[str, Order]


@dataclass(frozen=True, slots=True)
class Count:
    """What should be there by what the orders say, and what is there."""

    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an audit."""

    money_cents: Count
    """In the till."""
    stock: Count
    """Copies on the shelf."""
    orders: dict[str, int]
    """By state; every state is named."""
    wrong: tuple[str, ...]
    """What does not add up, a sentence each."""

    @property
    def is_clean(self) -> bool:
        """True if everything adds up; open orders do, as far as they have come."""
        return not self.wrong

    @property
    def open_orders(self) -> int:
        """Orders that are still to be seen through."""
        return sum(self.orders[state] for state in orderbook.OPEN)


def audit(directory: Path) -> Report:
    """Count. The shop may be open. Raises DatabaseAway if a database is missing."""
    return examine(read(directory))


def read(directory: Path) -> Holdings:
    """Read the databases without holding anybody up. Raises DatabaseAway."""
    before = _look(directory / orderbook.FILE, orderbook.everything)
    titles, takings = _look(directory / shelf.FILE, shelf.everything)
    wallets, till_cents, charges = _look(directory / ledger.FILE, ledger.everything)
    after = _look(directory / orderbook.FILE, orderbook.everything)
    return Holdings(
        before={order.order_id: order for order in before},
        titles=titles,
        takings={taking.order_id: taking for taking in takings},
        wallets=wallets,
        till_cents=till_cents,
        charges={charge.order_id: charge for charge in charges},
        after={order.order_id: order for order in after},
    )


def _look(path: Path, work: Callable[[Connection], T]) -> T:
    engine = open_read_only(path)
    try:
        return look(engine, work)
    finally:
        engine.dispose()


def examine(held: Holdings) -> Report:
    """Compare everything with everything."""
    states = Counter(order.state for order in held.after.values())
    return Report(
        money_cents=Count(_expected_till(held), held.till_cents),
        stock=Count(_expected_stock(held), sum(title.copies for title in held.titles)),
        orders={state.value: states[state] for state in State},
        wrong=(*_wrong_orders(held), *_wrong_effects(held), *_wrong_shelf(held), *_wrong_money(held)),
    )


def _expected_till(held: Holdings) -> int:
    charged = [held.after[each] for each in held.charges if each in held.after]
    uncharged = [order for order in held.before.values() if order.order_id not in held.charges]
    return sum(order.amount_cents for order in charged if order.state in _HAS_BOOKS) + sum(
        order.amount_cents for order in uncharged if order.state is State.SETTLED
    )


def _expected_stock(held: Holdings) -> int:
    taking = [each.order_id for each in held.takings.values() if each.refusal is None]
    took = [held.after[each] for each in taking if each in held.after]
    took_nothing = [order for order in held.before.values() if order.order_id not in held.takings]
    return (
        sum(title.delivered for title in held.titles)
        - sum(order.copies for order in took if order.state is not State.REJECTED)
        - sum(order.copies for order in took_nothing if order.state in _HAS_BOOKS)
    )


def _wrong_orders(held: Holdings) -> Iterator[str]:
    """Orders whose effects are not what they say."""
    for order in held.before.values():
        name = f"order {order.order_id} ({order.state})"
        taking = held.takings.get(order.order_id)
        charge = held.charges.get(order.order_id)
        if order.state is State.REJECTED:
            if taking is not None and taking.refusal is None:
                yield f"{name}: took {taking.copies} of {taking.book} from the shelf all the same"
            if charge is not None:
                yield f"{name}: was charged {money(charge.amount_cents)} all the same"
        if order.state in _HAS_BOOKS:
            if taking is None or taking.refusal is not None:
                yield f"{name}: took nothing from the shelf"
            elif (taking.book, taking.copies, taking.amount_cents) != (order.book, order.copies, order.amount_cents):
                yield (
                    f"{name}: {order.copies} of {order.book} for {money(order.amount_cents)}, but the warehouse gave "
                    f"{taking.copies} of {taking.book} for {money(taking.amount_cents)}"
                )
        if order.state is State.SETTLED and charge is None:
            yield f"{name}: {money(order.amount_cents)} were never charged"
        if (
            charge is not None
            and order.state in _HAS_BOOKS
            and (charge.reader, charge.amount_cents) != (order.reader, order.amount_cents)
        ):
            yield (
                f"{name}: {money(order.amount_cents)} from {order.reader}, but accounts charged "
                f"{money(charge.amount_cents)} to {charge.reader}"
            )


def _wrong_effects(held: Holdings) -> Iterator[str]:
    """Effects without an order that would explain them."""
    for taking in held.takings.values():
        if taking.refusal is None and taking.order_id not in held.after:
            yield f"{taking.copies} of {taking.book} were taken for order {taking.order_id}, which does not exist"
    for charge in held.charges.values():
        order = held.after.get(charge.order_id)
        if order is None:
            yield f"{money(charge.amount_cents)} were charged for order {charge.order_id}, which does not exist"
        elif order.state is State.PENDING:
            yield f"order {order.order_id} ({order.state}): was charged {money(charge.amount_cents)} before it had its books"


def _wrong_shelf(held: Holdings) -> Iterator[str]:
    taken: Counter[str] = Counter()
    for taking in held.takings.values():
        if taking.refusal is None:
            taken[taking.book] += taking.copies
    for title in held.titles:
        left = title.delivered - taken.pop(title.book, 0)
        if title.copies != left:
            yield f"shelf: {title.copies} of {title.book} found, {left} expected ({title.delivered} delivered)"
        if title.copies < 0:
            yield f"shelf: {title.copies} of {title.book}: oversold"
    for book, copies in taken.items():
        yield f"shelf: {copies} of {book} were taken, which the shelf does not know"


def _wrong_money(held: Holdings) -> Iterator[str]:
    charged: Counter[str] = Counter()
    for charge in held.charges.values():
        charged[charge.reader] += charge.amount_cents
    total = charged.total()
    if held.till_cents != total:
        yield f"till: {money(held.till_cents)} found, {money(total)} expected from {len(held.charges)} charges"
    for wallet in held.wallets:
        left = wallet.opening_cents - charged.pop(wallet.reader, 0)
        if wallet.balance_cents != left:
            yield f"wallet of {wallet.reader}: {money(wallet.balance_cents)} found, {money(left)} expected"
    for reader, cents in charged.items():
        yield f"wallet of {reader}: there is none, but {money(cents)} were charged"


def money(cents: int) -> str:
    """As people write it."""
    whole, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{whole:,}.{rest:02}"


def table(report: Report, of_money: str = "money in the till", of_stock: str = "copies on the shelf") -> str:
    """For people."""
    cents, stock = report.money_cents, report.stock
    lines = [
        f"{of_money:<20} expected {money(cents.expected):>16}   found {money(cents.found):>16}",
        f"{of_stock:<20} expected {stock.expected:>16,}   found {stock.found:>16,}",
        "orders               " + ", ".join(f"{count:,} {state}" for state, count in report.orders.items()),
    ]
    lines += [f"wrong: {sentence}" for sentence in report.wrong[:MOST_SHOWN]]
    if len(report.wrong) > MOST_SHOWN:
        lines.append(f"wrong: and {len(report.wrong) - MOST_SHOWN:,} more")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """The exit code; 2 by way of SystemExit if the arguments cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m apps.bookstore.audit", description="Count money and books.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the databases")
    parser.add_argument("--settled", action="store_true", help="an order that is still open is wrong, too")
    parser.add_argument("-o", choices=["table", "json"], default="table", dest="output", help="default: table")
    given = parser.parse_args(arguments)
    try:
        report = audit(given.dir)
    except DatabaseAway as error:
        print(f"audit: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(asdict(report)) if given.output == "json" else table(report))
    is_right = report.is_clean and not (given.settled and report.open_orders)
    if given.settled and report.open_orders:
        print(f"wrong: {report.open_orders} orders are still open", file=sys.stderr)
    return EXIT_CLEAN if is_right else EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
