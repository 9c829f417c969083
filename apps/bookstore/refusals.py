"""Why the bookstore says no: the reasons, and the exception that carries one from the domain to the edge."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

DOMAIN: Final = "bookstore"
"""Says in an answer's details that the refusal is the bookstore's own, and not one of whoever stands between."""


class Reason(StrEnum):
    """Part of the answer (google.rpc.ErrorInfo.reason): programs may rely on it."""

    BAD_FIELD = "BAD_FIELD"
    SOLD_OUT = "SOLD_OUT"
    NO_SUCH_BOOK = "NO_SUCH_BOOK"
    NO_SUCH_ORDER = "NO_SUCH_ORDER"
    NO_SUCH_TRANSFER = "NO_SUCH_TRANSFER"
    TOO_LITTLE_MONEY = "TOO_LITTLE_MONEY"
    NOTHING_HELD = "NOTHING_HELD"
    """What is to be finished or given back was never set aside."""
    TAKEN_BACK = "TAKEN_BACK"
    """A purchase was begun, and nothing of it remains."""
    ORDER_DIFFERS = "ORDER_DIFFERS"
    """The order_id stands for something else."""
    CALLEE_AWAY = "CALLEE_AWAY"
    """A service that is needed did not do its part yet; the order is recorded."""
    CALLEE_LIMITED = "CALLEE_LIMITED"
    """The same, because it takes no more calls now."""
    DATABASE_AWAY = "DATABASE_AWAY"
    BUSY = "BUSY"
    """The instance has as many calls in hand as it takes."""


RECORDED: Final = frozenset([Reason.SOLD_OUT, Reason.NO_SUCH_BOOK, Reason.ORDER_DIFFERS])
"""Refusals that stand for ever, whoever asks again: only these end an order."""
OF_A_BRANCH: Final = RECORDED | {Reason.BAD_FIELD, Reason.TOO_LITTLE_MONEY}
"""Refusals that take a transaction back when a branch of it meets them."""


class Refusal(Exception):
    """A call is refused; the text explains it to a person."""

    def __init__(self, reason: Reason, text: str, violations: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.violations = tuple(violations)
        """(field, what is wrong with it), if the input was bad."""
