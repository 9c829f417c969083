"""The invariants, each a function from a history to what is wrong with it.

| | must be true |
|---|---|
| I1 | what a group of holdings holds together is what it held in the beginning, and every ledger explains its holdings |
| I2 | no oversell: goods are never below nothing |
| I3 | money is never below nothing, and one (gid, branch, op) changes a holding once |
| I4 | every transaction ends, and its branches agree with its end |
| I5 | repetitions get the same answer |
| I6 | an undo without its origin changes nothing |
| I7 | what comes after its undo changes nothing (and so, I8, whichever of the two wins a race) |
| I9 | what is published arrives once in effect, and in order per key |
| I10 | XA: all branches or none, by a decision in the log, and none in doubt |
| I11 | the log goes forward only: tokens never fall, states follow the tables, nothing follows an end |
| I12 | what was answered is durable |
| I13 | nothing takes for ever without an alarm |
| I14 | TCC and XA let nobody see what is then taken back |
| I15 | two runs that may differ in repetitions only hold the same in the end (`same_ledgers`) |
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

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
)
from apps.transactions.context import ORIGINS, PHASES, Op, Phase
from apps.transactions.coordinator.states import ENDS, OPS, TRANSITIONS, Mode, State

MONEY: Final = "money"
DEFAULT_LIMIT_S: Final = 60.0
_FINAL_ANSWERS: Final = ("OK", "ABORTED")
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


class _View:
    """A history, sorted by kind."""

    def __init__(self, facts: Sequence[Fact], limit_s: float) -> None:
        self.facts = facts
        self.limit_s = limit_s
        self.began = {each.gid: each for each in self.all(Began)}
        self.ended = {each.gid: each for each in self.all(Ended)}
        self.effects = self.all(Effect)
        self.groups = {each.holding: each.group for each in self.all(Opening)}
        self.by_branch: dict[tuple[str, str], list[Effect]] = defaultdict(list)
        for each in self.effects:
            self.by_branch[each.gid, each.branch].append(each)

    def all(self, kind: type[F]) -> list[F]:
        return [each for each in self.facts if isinstance(each, kind)]

    def mode(self, gid: str) -> Mode | None:
        return Mode(self.began[gid].mode) if gid in self.began else None

    def state(self, gid: str) -> State | None:
        return State(self.ended[gid].state) if gid in self.ended else None


def check(facts: Sequence[Fact], *, limit_s: float = DEFAULT_LIMIT_S) -> list[Violation]:
    """Everything that is wrong; empty if nothing is. `limit_s`: what I13 grants a transaction without an alarm."""
    view = _View(facts, limit_s)
    return [Violation(name, text) for name, invariant in _INVARIANTS.items() for text in invariant(view)]


def same_ledgers(one: Sequence[Fact], other: Sequence[Fact]) -> list[Violation]:
    """I15."""
    first, second = (
        {each.holding: (each.free, each.frozen) for each in facts if isinstance(each, Closing)}
        for facts in (one, other)
    )
    return [
        Violation("I15", f"{name} holds {first.get(name)} in one run and {second.get(name)} in the other")
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def visible_and_taken_back(facts: Sequence[Fact]) -> Counter[str]:
    """By mode: effects that others could see and use, and that were then taken back. Saga has them, and says so."""
    view = _View(facts, DEFAULT_LIMIT_S)
    return Counter(mode for mode, _ in _taken_back(view))


def _conserved(view: _View) -> Iterable[str]:
    opening: Counter[str] = Counter()
    closing: Counter[str] = Counter()
    expected: dict[str, list[int]] = {}
    for first in view.all(Opening):
        opening[first.group] += first.amount
        expected[first.holding] = [first.amount, 0]
    for effect in view.effects:
        expected.setdefault(effect.holding, [0, 0])
        expected[effect.holding][0] += effect.free
        expected[effect.holding][1] += effect.frozen
    for last in view.all(Closing):
        closing[view.groups.get(last.holding, "?")] += last.free + last.frozen
        free, frozen = expected.get(last.holding, [0, 0])
        if (last.free, last.frozen) != (free, frozen):
            yield (f"{last.holding} holds {last.free} and {last.frozen} frozen, its ledger says {free} and {frozen}")
    if view.all(Closing):
        for group in sorted(opening.keys() | closing.keys()):
            if opening[group] != closing[group]:
                yield f"{group}: {opening[group]} in the beginning, {closing[group]} in the end"


def _no_oversell(view: _View) -> Iterable[str]:
    return _below_nothing(view, lambda group: group != MONEY)


def _no_debt(view: _View) -> Iterable[str]:
    yield from _below_nothing(view, lambda group: group == MONEY)
    times = Counter((each.gid, each.branch, each.op, each.holding) for each in view.effects if each.gid)
    for (gid, branch, op, holding), count in times.items():
        if count > 1:
            yield f"{gid}/{branch}/{op} changed {holding} {count} times"


def _below_nothing(view: _View, is_meant: Callable[[str], bool]) -> Iterable[str]:
    free: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for first in view.all(Opening):
        free[first.holding] += first.amount
    for effect in view.effects:
        free[effect.holding] += effect.free
        frozen[effect.holding] += effect.frozen
        if is_meant(view.groups.get(effect.holding, "")) and min(free[effect.holding], frozen[effect.holding]) < 0:
            yield f"{effect.holding} fell to {free[effect.holding]} free, {frozen[effect.holding]} frozen by {effect.gid}"


def _all_or_nothing(view: _View) -> Iterable[str]:
    for gid, began in view.began.items():
        state = view.state(gid)
        if state not in ENDS:
            yield f"{gid} did not end: it is {state or 'not in the log'}"
            continue
        ops = OPS[Mode(began.mode)]
        for branch in began.branches:
            effects = view.by_branch[gid, branch]
            done = {each.op for each in effects}
            if state is State.SUCCEEDED:
                # What XA prepared stands in the ledger as soon as it is committed, as the prepare that it was.
                last = ops.forward if Mode(began.mode) is Mode.XA else ops.finish or ops.forward
                if last not in done:
                    yield f"{gid} succeeded, but {branch} has no {last}"
                if ops.undo in done:
                    yield f"{gid} succeeded, but {branch} was undone"
            else:
                net = Counter[str]()
                for each in effects:
                    net[each.holding] += each.free
                    net[f"{each.holding} (frozen)"] += each.frozen
                for holding, amount in net.items():
                    if amount:
                        yield f"{gid} failed, but {branch} left {amount:+d} at {holding}"


def _same_answers(view: _View) -> Iterable[str]:
    answers: dict[tuple[str, str, str], set[tuple[str, str]]] = defaultdict(set)
    for each in view.all(Answered):
        # XA: the record of a prepare goes with it when it is rolled back; a repetition is told that it is late.
        is_gone = each.op == Op.PREPARE and view.state(each.gid) is State.FAILED
        if each.code in _FINAL_ANSWERS and not is_gone:
            answers[each.gid, each.branch, each.op].add((each.code, each.reply))
    for (gid, branch, op), different in answers.items():
        if len(different) > 1:
            yield f"{gid}/{branch}/{op} was answered in {len(different)} ways: {sorted(different)}"


def _empty_undo(view: _View) -> Iterable[str]:
    for (gid, branch), effects in view.by_branch.items():
        seen: set[str] = set()
        for each in effects:
            seen.add(each.op)
            if _phase(each.op) is not Phase.FORWARD and ORIGINS[Op(each.op)] not in seen:
                yield f"{gid}/{branch}/{each.op} changed {each.holding} without {ORIGINS[Op(each.op)]}"


def _hanging(view: _View) -> Iterable[str]:
    empty = {(each.gid, each.branch, each.op) for each in view.all(Answered) if each.is_empty and each.code == "OK"}
    for (gid, branch), effects in view.by_branch.items():
        undone: set[str] = set()
        for each in effects:
            if _phase(each.op) is Phase.UNDO:
                undone.add(ORIGINS[Op(each.op)])
            elif each.op in undone:
                yield f"{gid}/{branch}/{each.op} changed {each.holding} after it was undone"
        done = {each.op for each in effects}
        for undo, origin in ORIGINS.items():
            if (gid, branch, undo) in empty and origin in done:
                yield f"{gid}/{branch}/{origin} changed something, though {undo} had found nothing"


def _delivered_in_order(view: _View) -> Iterable[str]:
    published = view.all(Published)
    times = Counter(each.event for each in view.all(Delivered))
    for event in published:
        if times[event.event] != 1:
            yield f"event {event.event} took effect {times[event.event]} times"
    known = {each.event for each in published}
    for name in times.keys() - known:
        yield f"event {name} took effect, but was never published"
    rank = {each.event: number for number, each in enumerate(published)}
    keys = {each.event: each.key for each in published}
    newest: dict[str, int] = {}
    for delivered in view.all(Delivered):
        if delivered.event in rank:
            key, number = keys[delivered.event], rank[delivered.event]
            if number < newest.get(key, -1):
                yield f"event {delivered.event} of key {key} was overtaken"
            newest[key] = max(number, newest.get(key, -1))


def _two_phase(view: _View) -> Iterable[str]:
    for left in view.all(InDoubt):
        yield f"{left.gid}/{left.branch} is in doubt"
    decided = {each.gid for each in view.all(Logged) if each.state in (State.FINISHING, State.SUCCEEDED)}
    for gid, began in view.began.items():
        if began.mode != Mode.XA:
            continue
        committed = [name for name in began.branches if view.by_branch[gid, name]]
        if committed and len(committed) != len(began.branches):
            yield f"{gid} is mixed: {', '.join(committed)} of {', '.join(began.branches)} committed"
        if committed and gid not in decided:
            yield f"{gid} committed {', '.join(committed)} without a decision in the log"


def _log_goes_forward(view: _View) -> Iterable[str]:
    last: dict[str, Logged] = {}
    for each in view.all(Logged):
        before = last.get(each.gid)
        last[each.gid] = each
        mode = view.mode(each.gid)
        if before is None or mode is None:
            continue
        if each.token < before.token:
            yield f"{each.gid}: token {each.token} wrote after {before.token}"
        old, new = State(before.state), State(each.state)
        if old in ENDS and new is not old:
            yield f"{each.gid}: {new} was written after {old}"
        elif new not in _reachable(mode, old):
            yield f"{each.gid}: {new} was written after {old}, and nothing leads there"


def _reachable(mode: Mode, start: State) -> set[State]:
    found = {start}
    for _ in State:
        found |= {new for (old, _), new in TRANSITIONS[mode].items() if old in found}
    return found


def _durable(view: _View) -> Iterable[str]:
    for each in view.all(Answered):
        began = view.began.get(each.gid)
        if began is None or each.branch not in began.branches or each.code != "OK" or each.is_empty:
            continue
        if began.mode == Mode.XA or each.op == Op.QUERY:
            continue  # what was prepared may be rolled back; I10 looks at it
        if not any(effect.op == each.op for effect in view.by_branch[each.gid, each.branch]):
            yield f"{each.gid}/{each.branch}/{each.op} was answered OK, but no ledger knows of it"


def _bounded(view: _View) -> Iterable[str]:
    alarmed = {each.gid for each in view.all(Alarmed)}
    for gid, began in view.began.items():
        ended = view.ended.get(gid)
        if ended is None or gid in alarmed:
            continue
        if ended.at - began.at > view.limit_s:
            yield f"{gid} took {ended.at - began.at:.1f} s, more than {view.limit_s:g} s, and no alarm went off"


def _isolated(view: _View) -> Iterable[str]:
    for mode, text in _taken_back(view):
        if mode in (Mode.TCC, Mode.XA):
            yield text


def _taken_back(view: _View) -> Iterable[tuple[str, str]]:
    for each in view.effects:
        mode = view.mode(each.gid)
        is_forward = mode is not None and each.op == OPS[mode].forward
        if mode is not None and is_forward and each.free > 0 and view.state(each.gid) is State.FAILED:
            yield mode.value, f"{each.gid}/{each.branch} showed {each.free:+d} at {each.holding}, and took it back"


def _phase(op: str) -> Phase:
    return PHASES[Op(op)] if op in Op.__members__.values() else Phase.FORWARD


_INVARIANTS: Final[dict[str, Callable[[_View], Iterable[str]]]] = {
    "I1": _conserved,
    "I2": _no_oversell,
    "I3": _no_debt,
    "I4": _all_or_nothing,
    "I5": _same_answers,
    "I6": _empty_undo,
    "I7": _hanging,
    "I9": _delivered_in_order,
    "I10": _two_phase,
    "I11": _log_goes_forward,
    "I12": _durable,
    "I13": _bounded,
    "I14": _isolated,
}
