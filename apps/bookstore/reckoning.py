"""Money and books of purchases by whichever way, over all databases: expected = found, and what is wrong if not.

`python -m apps.bookstore.reckoning --dir DIR` exits with 0 if all is well, 1 if not, 2 if there is nothing to count.

Theory of operation. No money and no book is made or destroyed, so together all wallets, merchants and the bank hold what the wallets held in
the beginning, and shelf and buyers what was delivered. Between is what orders have in flight: an order that is not closed may have
debited here and not yet credited there. An order that was closed when the reading began must have done all of it or nothing. So the
databases need not be read at one moment, and what is reported is wrong, not merely under way.

A way that nobody sees through (naive) leaves orders open for ever. `--patience` says after how long an open order counts as closed, with
nothing done.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from apps.bookstore import movements
from apps.bookstore.accounts import ledger
from apps.bookstore.accounts.ledger import Wallet
from apps.bookstore.audit import EXIT_BAD_INPUT, EXIT_CLEAN, EXIT_WRONG, Count, Report, money, table
from apps.bookstore.bank import statement
from apps.bookstore.bank.statement import Transfer
from apps.bookstore.database import DatabaseAway, look, open_read_only, place
from apps.bookstore.movements import Movement
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order, State
from apps.bookstore.payment import earnings
from apps.bookstore.payment.earnings import Payout
from apps.bookstore.warehouse import shelf
from apps.bookstore.warehouse.shelf import Title

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Held:
    """What the databases hold, in the order in which it was read."""

    before: dict[str, Order]
    ages_s: dict[str, float]
    """Of open orders."""
    paid: Sequence[Payout]
    wallets: Sequence[Wallet]
    accounts: Sequence[Movement]
    titles: Sequence[Title]
    warehouse: Sequence[Movement]
    bank: Sequence[Transfer]
    payment: Sequence[Movement]
    instructed: Sequence[Payout]
    known: frozenset[str]
    """Orders that there are after all else was read."""


@dataclass(slots=True)
class Effects:
    """Of one order."""

    debited: int = 0
    """Cents that left the wallet, or are set aside there."""
    credited: int = 0
    picked: int = 0
    """Copies that left the shelf, or are put aside there."""
    aside: Counter[str] = field(default_factory=Counter)
    """What is still set aside, by service."""

    @property
    def are_none(self) -> bool:
        return not (self.debited or self.credited or self.picked or any(self.aside.values()))


def reckon(directory: Path, url: str = "", patience_s: float | None = None) -> Report:
    """Count; the shop may be open. Raises DatabaseAway if a database is missing."""
    return examine(read(directory, url), patience_s)


def read(directory: Path, url: str = "") -> Held:
    """Read the databases without holding anybody up. Raises DatabaseAway."""

    def at(file: str, work: Callable[[Connection], T]) -> T:
        engine = open_read_only(place(directory, file, url))
        try:
            return look(engine, work)
        finally:
            engine.dispose()

    now_ms = time.time_ns() // 1_000_000
    orders, recorded = at(orderbook.FILE, lambda tx: (orderbook.everything(tx), orderbook.recorded_ms(tx)))
    paid = at(earnings.FILE, earnings.everything)
    (wallets, _, _), accounts = at(ledger.FILE, lambda tx: (ledger.everything(tx), movements.everything(tx)))
    (titles, _), warehouse = at(shelf.FILE, lambda tx: (shelf.everything(tx), movements.everything(tx)))
    bank = at(statement.FILE, statement.everything)
    payment, instructed = at(earnings.FILE, lambda tx: (movements.everything(tx), earnings.everything(tx)))
    after = at(orderbook.FILE, orderbook.everything)
    return Held(
        before={each.order_id: each for each in orders},
        ages_s={name: (now_ms - at_ms) / 1000 for name, at_ms in recorded.items()},
        paid=[each for each in paid if each.is_paid],
        wallets=wallets,
        accounts=accounts,
        titles=titles,
        warehouse=warehouse,
        bank=bank,
        payment=payment,
        instructed=instructed,
        known=frozenset(each.order_id for each in after),
    )


def examine(held: Held, patience_s: float | None = None) -> Report:
    """Compare everything with everything."""
    effects = _effects(held)
    closed = [each for each in held.before.values() if _is_closed(each, held, patience_s)]
    sold = sum(each.copies for each in closed if each.state is State.SETTLED)
    nothing = Effects()
    of_closed = [effects.get(each.order_id, nothing) for each in closed]
    opening = sum(each.opening_cents for each in held.wallets)
    delivered = sum(each.delivered for each in held.titles)
    states = Counter(each.state for each in held.before.values())
    overpaid = sum(_overpaid(held).values())
    return Report(
        money_cents=Count(opening, opening - sum(each.debited - each.credited for each in of_closed) + overpaid),
        stock=Count(delivered, delivered - sum(each.picked for each in of_closed) + sold),
        orders={state.value: states[state] for state in State},
        wrong=(*_wrong_orders(closed, effects), *_wrong_balances(held), *_wrong_bank(held), *_unknown(held, effects)),
    )


def _effects(held: Held) -> dict[str, Effects]:
    found: dict[str, Effects] = {}
    for each in held.accounts:
        effect = found.setdefault(each.order_id, Effects())
        effect.debited -= each.free + each.held
        effect.aside["accounts"] += each.held
    for each in held.warehouse:
        effect = found.setdefault(each.order_id, Effects())
        effect.picked -= each.free + each.held
        effect.aside["warehouse"] += each.held
    for each in held.payment:
        effect = found.setdefault(each.order_id, Effects())
        effect.credited += each.free
        effect.aside["payment"] += each.held
    return found


def _is_closed(order: Order, held: Held, patience_s: float | None) -> bool:
    if order.state not in orderbook.OPEN:
        return True
    return patience_s is not None and held.ages_s.get(order.order_id, 0.0) > patience_s


def _wrong_orders(closed: Sequence[Order], effects: dict[str, Effects]) -> Iterator[str]:
    """Orders that are over, and whose effects are not what they say."""
    for order in closed:
        name = f"order {order.order_id} ({order.state})"
        found = effects.get(order.order_id, Effects())
        if order.state is not State.SETTLED:
            if not found.are_none:
                yield (
                    f"{name}: {money(found.debited)} debited, {money(found.credited)} credited, "
                    f"{found.picked} copies taken, for nothing"
                )
            continue
        if found.debited != order.amount_cents:
            yield f"{name}: {money(found.debited)} debited, the price is {money(order.amount_cents)}"
        if found.credited != order.amount_cents:
            yield f"{name}: {money(found.credited)} credited, the price is {money(order.amount_cents)}"
        if found.picked != order.copies:
            yield f"{name}: {found.picked} copies taken, {order.copies} bought"
        for service, amount in found.aside.items():
            if amount:
                yield f"{name}: {service} has {amount} set aside still"


def _wrong_balances(held: Held) -> Iterator[str]:
    """Balances that their movements do not explain, and such as may not be."""
    free: Counter[str] = Counter()
    for each in held.accounts:
        free[each.holding] += each.free
    for wallet in held.wallets:
        if wallet.balance_cents != wallet.opening_cents + free[wallet.reader]:
            expected = wallet.opening_cents + free[wallet.reader]
            yield f"wallet of {wallet.reader}: {money(wallet.balance_cents)} found, {money(expected)} expected"
    copies: Counter[str] = Counter()
    for each in held.warehouse:
        copies[each.holding] += each.free
    for title in held.titles:
        if title.copies != title.delivered + copies[title.book]:
            yield f"shelf: {title.copies} of {title.book} found, {title.delivered + copies[title.book]} expected"


def _overpaid(held: Held) -> Counter[str]:
    """Cents that the bank paid to each merchant beyond what it was told to."""
    paid: Counter[str] = Counter()
    for each in held.bank:
        paid[each.merchant] += each.amount_cents
    for payout in held.instructed:
        paid[payout.merchant] -= payout.amount_cents
    return Counter({merchant: cents for merchant, cents in paid.items() if cents > 0})


def _wrong_bank(held: Held) -> Iterator[str]:
    for merchant, cents in _overpaid(held).items():
        yield f"the bank paid {money(cents)} too much to {merchant}"
    keyed = {each.key for each in held.bank if each.key}
    if any(each.key for each in held.bank):
        for payout in held.paid:
            if payout.order_id not in keyed:
                yield f"order {payout.order_id}: {money(payout.amount_cents)} count as paid out, but the bank did not"


def _unknown(held: Held, effects: dict[str, Effects]) -> Iterator[str]:
    for name in effects.keys() - held.known:
        yield f"order {name} has effects, but there is no such order"


def main(arguments: Sequence[str]) -> int:
    """The exit code; 2 by way of SystemExit if the arguments cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m apps.bookstore.reckoning", description="Count money and books.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the databases")
    parser.add_argument("--database", default="", metavar="URL", help="of the databases, if they are no files")
    parser.add_argument("--patience", type=float, metavar="SECONDS", help="then an open order counts as given up")
    parser.add_argument("--settled", action="store_true", help="an order that is still open is wrong, too")
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="count again and again, a line of JSON each time"
    )
    parser.add_argument("-o", choices=["table", "json"], default="table", dest="output", help="default: table")
    given = parser.parse_args(arguments)
    while given.every:
        try:
            print(json.dumps(asdict(reckon(given.dir, given.database, given.patience))), flush=True)
        except DatabaseAway as error:  # it is not there yet, or away
            print(f"reckoning: {error}", file=sys.stderr)
        time.sleep(given.every)
    try:
        report = reckon(given.dir, given.database, given.patience)
    except DatabaseAway as error:
        print(f"reckoning: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(asdict(report)) if given.output == "json" else table(report, "money", "books"))
    is_right = report.is_clean and not (given.settled and report.open_orders)
    if given.settled and report.open_orders:
        print(f"wrong: {report.open_orders} orders are still open", file=sys.stderr)
    return EXIT_CLEAN if is_right else EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
