"""Checks of input, each naming field and value: `copies: -1 is out of range; 1 to 100 is needed`."""

import re
from typing import Final

from apps.bookstore.refusals import Reason, Refusal

MAX_TEXT: Final = 64
MAX_NOTICE: Final = 200
MAX_COPIES: Final = 100
"""In one order."""
MAX_AMOUNT_CENTS: Final = 100_000_000_000
"""In one charge: so many fit into 64 bits that no balance can overflow in practice, and the file refuses it if one does."""
_SHOWN: Final = 40
_ORDER_ID: Final = re.compile(r"[A-Za-z0-9._-]+")

Violation = tuple[str, str]
"""(field, what is wrong with it)."""


def require(*found: Violation | None) -> None:
    """Raises Refusal if anything was found, with everything that was found."""
    violations = [each for each in found if each is not None]
    if violations:
        text = "; ".join(f"{field}: {complaint}" for field, complaint in violations)
        raise Refusal(Reason.BAD_FIELD, text, violations)


def order_id(value: str) -> Violation | None:
    """An idempotency key: it must also pass through metadata and file names."""
    return text("order_id", value) or (
        None
        if _ORDER_ID.fullmatch(value)
        else ("order_id", f"{_shown(value)} has characters that are not allowed; letters, digits, . _ - are")
    )


def text(field: str, value: str, most: int = MAX_TEXT) -> Violation | None:
    """A name: there, short, printable."""
    if not value:
        return field, "is missing; it must be given"
    if len(value) > most:
        return field, f"{_shown(value)} is too long ({len(value)} characters); at most {most} are allowed"
    if not value.isprintable():
        return field, f"{_shown(value)} has characters that cannot be printed; leave them out"
    return None


def between(field: str, value: int, least: int, most: int) -> Violation | None:
    """A number within bounds, both included."""
    if least <= value <= most:
        return None
    return field, f"{value} is out of range; {least} to {most} is needed"


def _shown(value: str) -> str:
    cut = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
    return '"' + "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in cut) + '"'
