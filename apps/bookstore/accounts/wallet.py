"""A reader's wallet as a branch of a transaction: at once (debit, refund), or in two steps (hold, then capture or release).

What an event asks for cannot be refused any more (`may_owe`): then the reader owes.
"""

from typing import Final

from sqlalchemy import Connection, bindparam, insert, select, update

from apps.bookstore import movements
from apps.bookstore.accounts.ledger import OPENING_CENTS, WALLETS
from apps.bookstore.refusals import Reason, Refusal

_BALANCE: Final = select(WALLETS.c.balance_cents).where(WALLETS.c.reader == bindparam("reader"))
_OPEN: Final = insert(WALLETS)
_CHANGE: Final = (
    update(WALLETS)
    .where(
        WALLETS.c.reader == bindparam("of_reader"), WALLETS.c.balance_cents + bindparam("change") >= bindparam("least")
    )
    .values(balance_cents=WALLETS.c.balance_cents + bindparam("change"))
    .returning(WALLETS.c.balance_cents)
)
_NO_FLOOR: Final = -(2**62)


def debit(tx: Connection, order_id: str, reader: str, cents: int, may_owe: bool = False) -> int:
    """Take money; what is left. Raises Refusal."""
    left = _change(tx, order_id, reader, -cents, _NO_FLOOR if may_owe else 0)
    movements.move(tx, order_id, "debit", reader, free=-cents)
    return left


def refund(tx: Connection, order_id: str, reader: str, cents: int) -> int:
    """Take a debit back."""
    left = _change(tx, order_id, reader, cents)
    movements.move(tx, order_id, "refund", reader, free=cents)
    return left


def hold(tx: Connection, order_id: str, reader: str, cents: int) -> int:
    """Set money aside. Raises Refusal."""
    left = _change(tx, order_id, reader, -cents, 0)
    movements.move(tx, order_id, "hold", reader, free=-cents, held=cents)
    return left


def capture(tx: Connection, order_id: str, reader: str, cents: int) -> int:
    """Spend what was set aside."""
    movements.require_held(tx, order_id, reader, cents)
    movements.move(tx, order_id, "capture", reader, held=-cents)
    return tx.scalar(_BALANCE, {"reader": reader}) or 0


def release(tx: Connection, order_id: str, reader: str, cents: int) -> int:
    """Give back what was set aside."""
    movements.require_held(tx, order_id, reader, cents)
    left = _change(tx, order_id, reader, cents)
    movements.move(tx, order_id, "release", reader, free=cents, held=-cents)
    return left


def _change(tx: Connection, order_id: str, reader: str, change: int, least: int = _NO_FLOOR) -> int:
    if tx.scalar(_BALANCE, {"reader": reader}) is None:
        tx.execute(_OPEN, {"reader": reader, "opening_cents": OPENING_CENTS, "balance_cents": OPENING_CENTS})
    left = tx.scalar(_CHANGE, {"of_reader": reader, "change": change, "least": least})
    if left is None:
        found = tx.scalar(_BALANCE, {"reader": reader})
        text = f'order "{order_id}": {-change} cents wanted, "{reader}" has {found}'
        raise Refusal(Reason.TOO_LITTLE_MONEY, text)
    return int(left)
