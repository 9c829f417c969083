"""The state machines, by scenario and by chance."""

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.transactions.context import Verdict
from apps.transactions.coordinator.machine import (
    QUERY_INDEX,
    Asked,
    Branch,
    Call,
    Machine,
    Options,
    Retries,
    Transaction,
)
from apps.transactions.coordinator.states import ENDS, OPS, TRANSITIONS, Mode, Signal, State, diagram

SCENARIOS: Final = Path(__file__).parent / "scenarios" / "machine.txt"
RETRIES: Final = Retries(first_s=1.0, most_s=8.0, jitter=0.0, ongoing_s=0.5, dead_after=3)
VERDICTS: Final = {"ok": Verdict.DONE, **{each.value: each for each in Verdict}}
TARGET: Final = Call("grpc://there/a.B/C", b"")
SIGNALS: Final = {"submit": Signal.SUBMITTED, "abort": Signal.ABORT_ASKED, "force": Signal.FORCED}


def scenarios() -> list[tuple[str, list[str]]]:
    parts = re.split(r"^## ", SCENARIOS.read_text(), flags=re.MULTILINE)[1:]
    return [(title, body.splitlines()) for title, _, body in (part.strip().partition("\n") for part in parts)]


def transaction(line: str, has_begun: bool) -> Transaction:
    """`saga take charge(take) ship!(charge) timeout=5`."""
    kind, *words = line.split()
    mode = Mode(kind)
    is_called = mode is Mode.SAGA
    branches, options = (
        [],
        Options(timeout_s=30.0 if has_begun else 0.0, query=TARGET if mode is Mode.MESSAGE else None),
    )
    for word in words:
        if word.startswith("timeout="):
            options = replace(options, timeout_s=float(word.removeprefix("timeout=")))
        elif word == "forward":
            options = replace(options, forward_only=True)
        else:
            found = re.fullmatch(r"(\w+)([!*]?)(?:\(([\w,]+)\))?", word)
            assert found is not None, word
            name, kind, after = found.groups()
            branches.append(
                Branch(
                    name,
                    tuple((after or "").split(",")) if after else (),
                    forward=TARGET if is_called or kind == "*" else None,
                    finish=TARGET if OPS[mode].finish else None,
                    undo=TARGET if OPS[mode].undo and kind != "!" else None,
                    cannot_be_undone=kind == "!",
                )
            )
    return Transaction("g", mode, tuple(branches), options, 0.0, is_whole=not has_begun)


class Play:
    """One scenario: keeps what was written, and which calls are out."""

    def __init__(self, line: str, has_begun: bool) -> None:
        self.written = transaction(line, has_begun)
        self.machine = Machine(self.written, RETRIES, random.Random(0))
        self.out: dict[str, Asked] = {}

    def do(self, command: str, now: float) -> str:
        word, _, rest = command.partition(" ")
        if word in SIGNALS:
            if not self.machine.signal(SIGNALS[word], "asked", now):
                return "refuse"
        elif word == "hurry":
            self.machine.hurry(now)
        elif word == "recover":
            self.machine = Machine(self.written, RETRIES, random.Random(0), is_from_log=True)
            self.out.clear()
        elif word in VERDICTS:
            self.machine.answered(self.out.pop(rest), VERDICTS[word], "because", now)
        return self.step(now)

    def step(self, now: float) -> str:
        step = self.machine.step(now)
        said = []
        if step.write:
            self.written = self.machine.transaction
            said.append(f"write {self.written.state}" + (" dead" if self.written.is_dead_letter else ""))
        for asked in step.calls:
            branch = "query" if asked.index == QUERY_INDEX else self.written.branches[asked.index].name
            self.out[f"{branch}/{asked.op}"] = asked
            said.append(f"call {branch}/{asked.op}")
        if step.wake_at is not None:
            said.append(f"wake {step.wake_at:g}")
        return "; ".join(said) or "nothing"


@pytest.mark.parametrize(("title", "lines"), scenarios(), ids=[title for title, _ in scenarios()])
def test_scenario(title: str, lines: list[str]) -> None:
    first, *rest = [line for line in lines if line]
    play = Play(first, has_begun="begin" in rest[0])
    told = []
    for line in rest:
        at, command = re.fullmatch(r"at (\S+) (.*?) -> .*", line).groups()  # type: ignore[union-attr]
        told.append(f"at {at} {command} -> {play.do(command, float(at))}")
    assert told == rest


@pytest.mark.parametrize("mode", Mode)
def test_the_tables_lead_to_an_end_and_a_decision_is_never_changed(mode: Mode) -> None:
    table = TRANSITIONS[mode]
    assert {old for old, _ in table}.isdisjoint(ENDS)
    reached = {State.OPEN}
    for _ in State:
        reached |= {new for (old, _), new in table.items() if old in reached}
    assert reached >= ENDS
    assert {old for old, _ in table} <= reached, "every state that has a way out has a way in"
    decided = {(State.FINISHING, State.UNDOING), (State.UNDOING, State.FINISHING)}
    assert decided.isdisjoint({(old, new) for (old, _), new in table.items()})
    assert f"{next(iter(table))[0]} -->" in diagram(mode)


# By chance: any graph, any answers in any order, crashes anywhere.


@st.composite
def shapes(draw: st.DrawFn) -> str:
    mode = draw(st.sampled_from(list(Mode)))
    names = [f"b{index}" for index in range(draw(st.integers(1, 5)))]
    words = []
    for index, name in enumerate(names):
        after = draw(st.sets(st.sampled_from(names[:index]), max_size=2)) if index else set()
        mark = ""
        if mode is Mode.SAGA and index == len(names) - 1:
            mark = draw(st.sampled_from(["", "!"]))
        elif mode in (Mode.TCC, Mode.XA):
            mark = draw(st.sampled_from(["", "*"]))
        words.append(name + mark + (f"({','.join(sorted(after))})" if after else ""))
    return " ".join([mode.value, *words])


@settings(max_examples=150, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**32))
def test_whatever_happens_every_transaction_ends_and_its_branches_agree(shape: str, seed: int) -> None:
    dice = random.Random(seed)
    mode = Mode(shape.split()[0])
    play = Play(shape, has_begun=mode is not Mode.SAGA)
    play.do("begin" if mode is not Mode.SAGA else "submit", 0.0)
    effects: dict[str, set[str]] = {each.name: set() for each in play.written.branches}
    now, decided = 0.0, ""
    for turn in range(2000):
        if play.written.state in ENDS:
            break
        now += dice.choice([0.0, 0.5, 5.0])
        before = play.written.state
        roll = dice.random()
        is_calm = turn > 200  # then nothing bad happens any more, so that it can end
        if roll < 0.06 and not is_calm:
            play.do("recover", now)
        elif roll < 0.12:
            play.do(dice.choice(["submit", "abort"]), now)
        elif play.out and roll < 0.9:
            name = dice.choice(sorted(play.out))
            branch, op = name.split("/")
            word = "ok" if is_calm else dice.choice(["ok", "ok", "refused", "unknown", "ongoing"])
            if word == "ok" and branch != "query":
                check_order(play, effects, branch, op)
                effects[branch].add(op)
            play.do(f"{word} {name}", now)
        else:
            play.do("tick", now)
        if before in (State.FINISHING, State.UNDOING) and play.written.state != before:
            decided = decided or before
            assert play.written.state is (State.SUCCEEDED if before is State.FINISHING else State.FAILED)
    assert play.written.state in ENDS, f"still {play.written.state}"
    forward, finish, undo = OPS[mode].forward, OPS[mode].finish, OPS[mode].undo
    for spec in play.written.branches:
        done = effects[spec.name]
        if play.written.state is State.SUCCEEDED:
            assert (finish or forward) in done
            assert undo not in done
        else:
            assert finish not in done
            assert undo in done or forward not in done


def check_order(play: Play, effects: dict[str, set[str]], branch: str, op: str) -> None:
    """What is done forward was waited for; what is undone leaves nothing behind that came after it."""
    mode = play.written.mode
    for other in play.written.branches:
        done = effects[other.name]
        if branch in other.after and op == OPS[mode].undo and OPS[mode].forward in done and other.undo is not None:
            assert OPS[mode].undo in done, f"{branch} is undone before {other.name}"
        if other.name == branch and op == OPS[mode].forward:
            for name in other.after:
                upstream = next(each for each in play.written.branches if each.name == name)
                assert upstream.forward is None or OPS[mode].forward in effects[name]
