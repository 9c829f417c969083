"""`python -m apps.bookstore.seed --dir DIR`: databases with full shelves and an empty till, and on request with wallets.

The services do the same when they start; this is for a shelf of another size, or to count before they start. What is there already stays.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from apps.bookstore.accounts import ledger
from apps.bookstore.catalogue import BOOKS, DEFAULT_COPIES
from apps.bookstore.database import DatabaseAway, open_engine, place, transact
from apps.bookstore.orders import orderbook
from apps.bookstore.warehouse import shelf

EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2
MOST_READERS: Final = 10_000
MOST_COPIES: Final = 1_000_000_000


def seed(directory: Path, copies: int = DEFAULT_COPIES, url: str = "", readers: int = 0) -> None:
    """Create what is missing. Raises DatabaseAway."""
    files = (shelf.FILE, ledger.FILE, orderbook.FILE)
    warehouse, accounts, orders = (open_engine(place(directory, file, url)) for file in files)
    try:
        transact(warehouse, shelf.prepare, BOOKS, copies)
        transact(accounts, ledger.prepare)
        transact(accounts, ledger.open_wallets, (f"reader-{number}" for number in range(readers)))
        transact(orders, orderbook.prepare)
    finally:
        for engine in (warehouse, accounts, orders):
            engine.dispose()


def main(arguments: Sequence[str]) -> int:
    """The exit code; 2 by way of SystemExit if the arguments cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m apps.bookstore.seed", description="Fill the shelves.")
    parser.add_argument("--dir", type=Path, required=True, help="directory of the databases")
    parser.add_argument("--copies", type=int, default=DEFAULT_COPIES, help="of each title (default: %(default)s)")
    parser.add_argument("--database", default="", metavar="URL", help="of the databases, if they are to be no files")
    parser.add_argument(
        "--readers", type=int, default=0, help="wallets to open, for reader-0 and so on (default: none)"
    )
    given = parser.parse_args(arguments)
    if not 0 <= given.readers <= MOST_READERS:
        parser.error(f"--readers: {given.readers} is out of range; 0 to {MOST_READERS} is needed")
    if not 0 <= given.copies <= MOST_COPIES:
        parser.error(f"--copies: {given.copies} is out of range; 0 to {MOST_COPIES} is needed")
    try:
        seed(given.dir, given.copies, given.database, given.readers)
    except DatabaseAway as error:
        print(f"seed: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
