"""The checker finds every fault that is planted, and none where there is none."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apps.transactions.audit import (
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
    check,
    load,
    save,
    visible_and_taken_back,
)
from apps.transactions.audit.checker import same_ledgers

# A sound history: one transaction of each mode and end, and three events.
SOUND: list[Fact] = [
    Opening("reader", "money", 100),
    Opening("till", "money", 0),
    Opening("books", "books", 10),
    Opening("sold", "books", 0),
    # saga, succeeded; its first call was repeated
    Began("s1", "saga", ("debit", "credit"), 0.0),
    Logged("s1", "running", 1),
    Effect("s1", "debit", "action", "reader", -30),
    Answered("s1", "debit", "action", "OK", "70"),
    Answered("s1", "debit", "action", "UNAVAILABLE", ""),
    Answered("s1", "debit", "action", "OK", "70"),
    Effect("s1", "credit", "action", "till", 30),
    Answered("s1", "credit", "action", "OK", "30"),
    Logged("s1", "succeeded", 1),
    Ended("s1", "succeeded", 1.0),
    # saga, failed, with a change of hands in between
    Began("s2", "saga", ("credit", "debit"), 0.0),
    Logged("s2", "running", 1),
    Effect("s2", "credit", "action", "till", 500),
    Answered("s2", "debit", "action", "ABORTED", "too little"),
    Logged("s2", "undoing", 2),
    Answered("s2", "debit", "compensate", "OK", "", True),
    Effect("s2", "credit", "compensate", "till", -500),
    Logged("s2", "failed", 2),
    Ended("s2", "failed", 2.0),
    # tcc, succeeded
    Began("t1", "tcc", ("ship", "stock"), 0.0),
    Logged("t1", "open", 1),
    Effect("t1", "ship", "try", "books", -1, 1),
    Effect("t1", "stock", "try", "sold", 0),
    Logged("t1", "finishing", 1),
    Effect("t1", "ship", "confirm", "books", 0, -1),
    Effect("t1", "stock", "confirm", "sold", 1),
    Answered("t1", "stock", "confirm", "OK", "1"),
    Logged("t1", "succeeded", 1),
    Ended("t1", "succeeded", 1.0),
    # tcc, failed
    Began("t2", "tcc", ("ship",), 0.0),
    Logged("t2", "open", 1),
    Effect("t2", "ship", "try", "books", -1, 1),
    Logged("t2", "undoing", 1),
    Effect("t2", "ship", "cancel", "books", 1, -1),
    Logged("t2", "failed", 1),
    Ended("t2", "failed", 1.0),
    # xa, committed and rolled back
    Began("x1", "xa", ("debit", "credit"), 0.0),
    Logged("x1", "open", 1),
    Answered("x1", "debit", "prepare", "OK", "60"),
    Logged("x1", "finishing", 1),
    Effect("x1", "debit", "prepare", "reader", -10),
    Effect("x1", "credit", "prepare", "till", 10),
    Logged("x1", "succeeded", 1),
    Ended("x1", "succeeded", 1.0),
    Began("x2", "xa", ("debit", "credit"), 0.0),
    Logged("x2", "open", 1),
    Answered("x2", "debit", "prepare", "OK", "55"),
    Logged("x2", "undoing", 1),
    Logged("x2", "failed", 1),
    Ended("x2", "failed", 1.0),
    # a message that took long, with an alarm
    Began("m1", "message", ("ship",), 0.0),
    Logged("m1", "open", 1),
    Logged("m1", "finishing", 3),
    Effect("m1", "ship", "deliver", "books", -1),
    Effect("m1", "ship2", "deliver", "sold", 1),
    Alarmed("m1"),
    Logged("m1", "succeeded", 3),
    Ended("m1", "succeeded", 500.0),
    # events
    Published("e1", "a"),
    Published("e2", "b"),
    Published("e3", "a"),
    Delivered("e2"),
    Delivered("e1"),
    Delivered("e3"),
    Closing("reader", 60),
    Closing("till", 40),
    Closing("books", 8),
    Closing("sold", 2),
]


def test_a_sound_history_has_nothing_wrong() -> None:
    assert check(SOUND) == []


def without(*gone: Fact) -> list[Fact]:
    assert all(each in SOUND for each in gone)
    return [each for each in SOUND if each not in gone]


def changed(old: Fact, *new: Fact) -> list[Fact]:
    index = SOUND.index(old)
    return [*SOUND[:index], *new, *SOUND[index + 1 :]]


def ledger_and_closing(effect: Effect, *new: Effect) -> list[Fact]:
    """Effects in place of one, with closings that still agree with the ledger."""
    facts = changed(effect, *new)
    result: list[Fact] = []
    for each in facts:
        if isinstance(each, Closing):
            free = sum(e.free for e in facts if isinstance(e, Effect) and e.holding == each.holding)
            frozen = sum(e.frozen for e in facts if isinstance(e, Effect) and e.holding == each.holding)
            opening = sum(e.amount for e in facts if isinstance(e, Opening) and e.holding == each.holding)
            each = Closing(each.holding, opening + free, frozen)
        result.append(each)
    return result


DEBIT = Effect("s1", "debit", "action", "reader", -30)
CREDIT_BACK = Effect("s2", "credit", "compensate", "till", -500)
TRY = Effect("t2", "ship", "try", "books", -1, 1)
CANCEL = Effect("t2", "ship", "cancel", "books", 1, -1)

FAULTS: dict[str, tuple[str, Callable[[], list[Fact]]]] = {
    "money vanishes from a holding behind the ledger's back": ("I1", lambda: changed(Closing("till", 40), Closing("till", 39))),
    "a ledger entry is lost on one side": ("I1", lambda: ledger_and_closing(DEBIT)),
    "goods are sold that are not there": ("I2", lambda: ledger_and_closing(TRY, replace(TRY, free=-11, frozen=11))),
    "a balance falls below nothing": ("I3", lambda: ledger_and_closing(DEBIT, replace(DEBIT, free=-130))),
    "a reader is charged twice": ("I3", lambda: ledger_and_closing(DEBIT, DEBIT, DEBIT)),
    "a transaction hangs": ("I4", lambda: changed(Ended("s1", "succeeded", 1.0), Ended("s1", "running", 1.0))),
    "a transaction is lost from the log": ("I4", lambda: without(Ended("s1", "succeeded", 1.0))),
    "a succeeded saga lacks a step": ("I4", lambda: ledger_and_closing(DEBIT)),
    "a failed saga keeps a step": ("I4", lambda: ledger_and_closing(CREDIT_BACK)),
    "a reservation is never released": ("I4", lambda: ledger_and_closing(CANCEL)),
    "a repetition is answered otherwise": (
        "I5",
        lambda: [*SOUND, Answered("s1", "debit", "action", "OK", "40")],
    ),
    "a refusal becomes a yes": ("I5", lambda: [*SOUND, Answered("s2", "debit", "action", "OK", "")]),
    "a cancel without its try releases something": ("I6", lambda: ledger_and_closing(TRY)),
    "a late try reserves for ever": ("I7", lambda: ledger_and_closing(CANCEL, CANCEL, TRY)),
    "a step takes effect though its compensation found nothing": (
        "I7",
        lambda: [*SOUND, Effect("s2", "debit", "action", "reader", 0)],
    ),
    "an event is lost": ("I9", lambda: without(Delivered("e2"))),
    "an event takes effect twice": ("I9", lambda: [*SOUND, Delivered("e2")]),
    "an event comes out of order": ("I9", lambda: [*without(Delivered("e1")), Delivered("e1")]),
    "an event comes from nowhere": ("I9", lambda: [*SOUND, Delivered("e9")]),
    "a branch is left in doubt": ("I10", lambda: [*SOUND, InDoubt("x2", "debit")]),
    "one branch commits and the other does not": (
        "I10",
        lambda: ledger_and_closing(Effect("x1", "credit", "prepare", "till", 10)),
    ),
    "a branch commits without a decision": (
        "I10",
        lambda: [each for each in SOUND if each not in (Logged("x1", "finishing", 1), Logged("x1", "succeeded", 1))],
    ),
    "an old owner writes": ("I11", lambda: changed(Logged("s2", "failed", 2), Logged("s2", "failed", 1))),
    "a decision is changed": ("I11", lambda: changed(Logged("t1", "succeeded", 1), Logged("t1", "undoing", 1))),
    "something follows an end": ("I11", lambda: [*SOUND, Logged("s1", "undoing", 1)]),
    "what was answered is gone after a restart": (
        "I12",
        lambda: ledger_and_closing(Effect("t1", "stock", "confirm", "sold", 1)),
    ),
    "something takes for ever and nobody is told": ("I13", lambda: without(Alarmed("m1"))),
    "tcc shows what it then takes back": ("I14", lambda: ledger_and_closing(
        CANCEL, CANCEL, Effect("t2", "credit", "try", "sold", 5), Effect("t2", "credit", "cancel", "sold", -5)
    )),
}  # fmt: skip


@pytest.mark.parametrize(("invariant", "plant"), FAULTS.values(), ids=list(FAULTS))
def test_a_planted_fault_is_found(invariant: str, plant: Callable[[], list[Fact]]) -> None:
    found = check(plant())
    assert invariant in {each.invariant for each in found}, found


def test_what_saga_shows_and_takes_back_is_counted_and_no_fault() -> None:
    assert visible_and_taken_back(SOUND) == {"saga": 1}


def test_two_runs_are_compared_by_what_they_hold_in_the_end() -> None:
    assert same_ledgers(SOUND, SOUND) == []
    other = changed(Closing("till", 40), Closing("till", 41))
    assert [str(each) for each in same_ledgers(SOUND, other)] == [
        "I15: till holds (40, 0) in one run and (41, 0) in the other"
    ]


def test_a_history_is_kept_in_a_file_and_checked_from_there(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    save(SOUND, path)
    assert load(path) == SOUND
    command = [sys.executable, "-m", "apps.transactions.audit", str(path)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    save([*SOUND, InDoubt("x2", "debit")], path)
    bad = subprocess.run(command, capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (1, "I10: x2/debit is in doubt\n")
    path.write_text("{}\n")
    assert subprocess.run(command, capture_output=True).returncode == 2
