"""What happened to purchases, as a history that the transactions library's checker judges by its invariants I1 to I14.

`python -m apps.bookstore.history --dir DIR --way saga` reads all databases and the coordinator's log (DIR/transactions.sqlite3), once the shop
is closed, and exits with 0 if every invariant holds, 1 if not, 2 if there is nothing to read. `--save FILE` keeps the history.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection

from apps.bookstore import movements
from apps.bookstore.accounts import ledger
from apps.bookstore.database import DatabaseAway, look, open_read_only, place
from apps.bookstore.movements import Movement
from apps.bookstore.payment import earnings
from apps.bookstore.warehouse import shelf
from apps.transactions.audit import Began, Closing, Effect, Ended, Fact, Logged, Opening, check, save
from apps.transactions.context import Op
from apps.transactions.coordinator.log import LogUnavailable, Record
from apps.transactions.coordinator.sql import SqlLog, open_log_engine
from apps.transactions.coordinator.states import State
from proto.transactions.v1 import coordinator_pb2 as pb

LOG: Final = "transactions.sqlite3"
WAYS: Final = ("saga", "tcc", "xa")
"""Those that the coordinator sees to."""
LIMIT_S: Final = 180.0
"""That a transaction may take: processes are killed, and slow to come back."""
PAGE: Final = 1000
MOST_SHOWN: Final = 20
EXIT_GOOD: Final = 0
EXIT_BAD: Final = 1
EXIT_BAD_INPUT: Final = 2

_FORWARD: Final = {"saga": Op.ACTION, "xa": Op.PREPARE}
_DECISIONS: Final = {
    "all done": State.FINISHING,
    "refused": State.UNDOING,
    "abort asked": State.UNDOING,
    "time over": State.UNDOING,
}
"""What leads to a decision, which is then in the log."""
_OPS: Final = {
    "refund": Op.COMPENSATE,
    "put back": Op.COMPENSATE,
    "hold": Op.TRY,
    "reserve": Op.TRY,
    "announce": Op.TRY,
    "capture": Op.CONFIRM,
    "ship": Op.CONFIRM,
    "confirm": Op.CONFIRM,
    "release": Op.CANCEL,
    "withdraw": Op.CANCEL,
}
"""Of movements that belong to one way; `debit`, `pick` and `credit` go forward by whichever."""
T = TypeVar("T")


def read(directory: Path, way: str, url: str = "") -> list[Fact]:
    """Raises DatabaseAway, LogUnavailable."""

    def at(file: str, work: Callable[[Connection], T]) -> T:
        engine = open_read_only(place(directory, file, url))
        try:
            return look(engine, work)
        finally:
            engine.dispose()

    facts: list[Fact] = []
    (wallets, _, _), moved = at(ledger.FILE, lambda tx: (ledger.everything(tx), movements.everything(tx)))
    facts += [Opening(f"wallet {each.reader}", "money", each.opening_cents) for each in wallets]
    facts += [
        Effect(each.order_id, "debit", _op(way, each.kind), f"wallet {each.holding}", each.free, each.held)
        for each in moved
    ]
    held = _held(moved)
    facts += [Closing(f"wallet {each.reader}", each.balance_cents, held[each.reader]) for each in wallets]
    moved = at(earnings.FILE, movements.everything)
    merchants = sorted({each.holding for each in moved})
    earned: Counter[str] = Counter()
    for each in moved:
        earned[each.holding] += each.free
    facts += [Opening(f"merchant {name}", "money", 0) for name in merchants]
    # What is announced is nobody's money yet: it is the reader's, set aside in his wallet.
    facts += [
        Effect(each.order_id, "credit", _op(way, each.kind), f"merchant {each.holding}", each.free) for each in moved
    ]
    facts += [Closing(f"merchant {name}", earned[name]) for name in merchants]
    (titles, _), moved = at(shelf.FILE, lambda tx: (shelf.everything(tx), movements.everything(tx)))
    facts += [Opening(f"shelf {each.book}", "books", each.delivered) for each in titles]
    facts += _from_the_shelf(way, moved)
    held = _held(moved)
    facts += [Closing(f"shelf {each.book}", each.copies, held[each.book]) for each in titles]
    facts += _transactions(asyncio.run(_records(directory)))
    return facts


def _from_the_shelf(way: str, moved: Sequence[Movement]) -> Iterator[Fact]:
    """What leaves the warehouse is with the buyers."""
    yield Opening("buyers", "books", 0)
    total = 0
    for each in moved:
        op = _op(way, each.kind)
        yield Effect(each.order_id, "take", op, f"shelf {each.holding}", each.free, each.held)
        shipped = -(each.free + each.held)
        if shipped:
            yield Effect(each.order_id, "take", op, "buyers", shipped)
            total += shipped
    yield Closing("buyers", total)


def _op(way: str, kind: str) -> str:
    return _OPS.get(kind) or _FORWARD[way]


def _held(moved: Sequence[Movement]) -> Counter[str]:
    found: Counter[str] = Counter()
    for each in moved:
        found[each.holding] += each.held
    return found


async def _records(directory: Path) -> list[Record]:
    """The coordinator's whole log."""
    if not (directory / LOG).is_file():
        raise LogUnavailable(f"{directory / LOG}: no such file")
    engine = open_log_engine(f"sqlite:///{directory / LOG}")
    log = SqlLog(engine)
    try:
        found: list[Record] = []
        while page := await log.page([], False, found[-1].gid if found else "", PAGE):
            found += page
        return found
    finally:
        await log.close()
        engine.dispose()


def _transactions(records: Sequence[Record]) -> Iterator[Fact]:
    for record in records:
        transaction = pb.Transaction.FromString(record.value)
        branches = tuple(each.name for each in transaction.branches)
        mode = pb.Mode.Name(transaction.mode).lower()
        yield Began(record.gid, mode, branches, transaction.created_at)
        for each in transaction.events:
            if not each.branch and each.what in _DECISIONS and (mode, each.what) != ("saga", "all done"):
                yield Logged(record.gid, _DECISIONS[each.what], record.token)
        yield Logged(record.gid, record.state, record.token)
        yield Ended(record.gid, record.state.value, transaction.ended_at or transaction.created_at)


def main(arguments: Sequence[str]) -> int:
    """The exit code; 2 by way of SystemExit if the arguments cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m apps.bookstore.history", description="Judge what happened.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the databases and the coordinator's log")
    parser.add_argument("--way", choices=WAYS, required=True, help="by which purchases went")
    parser.add_argument("--database", default="", metavar="URL", help="of the databases, if they are no files")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the history, a fact a line")
    given = parser.parse_args(arguments)
    try:
        facts = read(given.dir, given.way, given.database)
    except (DatabaseAway, LogUnavailable) as error:
        print(f"history: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if given.save is not None:
        save(facts, given.save)
    violations = check(facts, limit_s=LIMIT_S)
    for each in violations[:MOST_SHOWN]:
        print(each)
    ended = sum(isinstance(each, Ended) for each in facts)
    print(f"{len(facts):,} facts of {ended:,} transactions, {len(violations):,} violations")
    return EXIT_BAD if violations else EXIT_GOOD


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
