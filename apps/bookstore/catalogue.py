"""The books that the bookstore sells."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Book:
    """One title."""

    id: str
    title: str
    price_cents: int
    merchant: str = "remora-press"
    """Who publishes it, and is paid for it."""


BOOKS: Final = (
    Book("sql-for-sharks", "SQL for Sharks", 4200, "deep-blue-books"),
    Book("the-sucking-disc", "The Sucking Disc: A Natural History", 2850),
    Book("hitching-a-ride", "Hitching a Ride", 1290, "deep-blue-books"),
    Book("two-generals", "Two Generals, One Message", 1990, "byzantine-house"),
    Book("quorum-cooking", "Quorum Cooking for Three to Five", 3300, "byzantine-house"),
    Book("lease-of-life", "A Lease of Life", 1575),
    Book("deep-currents", "Deep Currents", 999),
    Book("at-least-once", "At Least Once Upon a Time", 2400),
)
DEFAULT_COPIES: Final = 100_000
"""Of each title, on a new shelf."""


def find(book: str) -> Book | None:
    """The title with this identifier."""
    return _BY_ID.get(book)


_BY_ID: Final = {each.id: each for each in BOOKS}
