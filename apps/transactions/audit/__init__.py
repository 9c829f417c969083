"""Whether a history kept what transactions promise: recorded while it happens, checked afterwards, with nothing running.

`history` is what is recorded, `checker` what must be true of it: the invariants I1 to I15.
"""

from apps.transactions.audit.checker import Violation, check, visible_and_taken_back
from apps.transactions.audit.history import (
    Alarmed,
    Answered,
    Began,
    Closing,
    Delivered,
    Effect,
    Ended,
    Fact,
    InDoubt,
    Logged,
    Opening,
    Published,
    load,
    save,
)

__all__ = [
    "Alarmed",
    "Answered",
    "Began",
    "Closing",
    "Delivered",
    "Effect",
    "Ended",
    "Fact",
    "InDoubt",
    "Logged",
    "Opening",
    "Published",
    "Violation",
    "check",
    "load",
    "save",
    "visible_and_taken_back",
]
