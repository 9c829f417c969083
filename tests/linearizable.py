"""Is a history of reads and writes of one register linearizable? A search in the manner of Wing and Gong, with the memo of Lowe.

A history is linearizable if each operation can be put at one moment between its beginning and its end so that every read finds what was
written last. An operation without an end (its answer was lost) may have been carried out at any time after its beginning, or never.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

MAX_STEPS: Final = 2_000_000
"""A search that takes more is given up with an error, and proves nothing."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client did to one key. A value is written once."""

    key: str
    begin: float
    end: float
    """inf: no answer came."""
    is_write: bool
    value: str | None
    """Written or read; None: nothing there."""


class NotLinearizable(AssertionError):
    """No order of the operations explains what was read."""


def check(history: Iterable[Operation]) -> None:
    """Raises NotLinearizable with the key and the operations around what cannot be explained."""
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    for key, operations in sorted(by_key.items()):
        _check_key(key, operations)


def _check_key(key: str, operations: Sequence[Operation]) -> None:
    read = {each.value for each in operations if not each.is_write}
    # What was perhaps written and never read explains nothing; a read without an answer asks nothing.
    relevant = [each for each in operations if each.end != inf or (each.is_write and each.value in read)]
    ordered = sorted(relevant, key=lambda each: each.begin)
    required = sum(1 << number for number, each in enumerate(ordered) if each.end != inf)
    start: tuple[int, str | None] = (0, None)
    seen, stack, furthest = {start}, [start], 0
    for _ in range(MAX_STEPS):
        if not stack:
            raise NotLinearizable(_told(key, ordered, furthest))
        done, value = stack.pop()
        if done & required == required:
            return
        if (done & required).bit_count() > (furthest & required).bit_count():
            furthest = done
        for number in _next(ordered, done):
            each = ordered[number]
            if each.is_write or each.value == value:
                found = (done | 1 << number, each.value)
                if found not in seen:
                    seen.add(found)
                    stack.append(found)
    raise RuntimeError(f"{key}: the search takes more than {MAX_STEPS} steps; make the history shorter")


def _next(ordered: Sequence[Operation], done: int) -> list[int]:
    """Which may come next: those that began before any of the others had ended."""
    found: list[int] = []
    earliest_end = inf
    for number, each in enumerate(ordered):
        if done >> number & 1:
            continue
        if each.begin > earliest_end:
            break
        earliest_end = min(earliest_end, each.end)
        found.append(number)
    return [number for number in found if ordered[number].begin <= earliest_end]


def _told(key: str, ordered: Sequence[Operation], furthest: int) -> str:
    stuck = [number for number in range(len(ordered)) if not furthest >> number & 1][:3]
    around = ordered[max(0, stuck[0] - 4) : stuck[-1] + 4] if stuck else ordered
    lines = [
        f"  {each.begin:.6f} … {each.end:.6f}  {'wrote' if each.is_write else 'read '} {each.value!r}"
        for each in around
    ]
    return "\n".join([f"{key}: no order explains these operations:", *lines])
