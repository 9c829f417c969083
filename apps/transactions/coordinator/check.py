"""Refuses transactions that cannot be carried out, before anything is written. Every complaint names the field, the value and the way out."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

from apps.transactions.context import MAX_BRANCH, MAX_GID, complaint
from apps.transactions.coordinator.machine import Branch, Call, Transaction
from apps.transactions.coordinator.states import Mode

MAX_BRANCHES: Final = 64
MAX_BODY_BYTES: Final = 64 * 1024
"""Of one call's request."""
MAX_TOTAL_BYTES: Final = 512 * 1024
"""Of all requests of a transaction."""
MAX_TIMEOUT_S: Final = 30 * 86_400.0
MAX_TARGET: Final = 300
"""Characters."""
SCHEMES: Final = ("grpc",)
ANY: Final = ("*",)

_NEEDS: Final = {
    Mode.SAGA: ("forward", "undo"),
    Mode.TCC: ("finish", "undo"),
    Mode.XA: ("finish", "undo"),
    Mode.MESSAGE: ("finish",),
}
_MEANINGS: Final = {
    Mode.SAGA: {"forward": "the action", "undo": "the compensation"},
    Mode.TCC: {"finish": "confirm", "undo": "cancel"},
    Mode.XA: {"finish": "commit", "undo": "rollback"},
    Mode.MESSAGE: {"finish": "the delivery"},
}


class IllFormed(Exception):
    """The transaction cannot be carried out; the text says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check(transaction: Transaction, services: Sequence[str] = ANY) -> None:
    """`services`: patterns of HOST:PORT that may be called. Raises IllFormed."""
    wrong = complaint("gid", transaction.gid, MAX_GID)
    if wrong is not None:
        raise IllFormed("BAD_NAME", wrong)
    options = transaction.options
    if not 0 <= options.timeout_s <= MAX_TIMEOUT_S:
        text = f"options.timeout_s: {options.timeout_s:g} is out of range; 0 to {MAX_TIMEOUT_S:g} is needed"
        raise IllFormed("BAD_TIMEOUT", text)
    if options.forward_only and transaction.mode is not Mode.SAGA:
        raise IllFormed("BAD_OPTION", f"options.forward_only: only a saga can be, not {transaction.mode}")
    if options.query is not None:
        _check_call("options.query", options.query, services)
    elif transaction.mode is Mode.MESSAGE and not transaction.is_whole:
        raise IllFormed(
            "NO_QUERY", "options.query: is missing; without it nobody can say whether the initiator committed"
        )
    if transaction.is_whole and not transaction.branches:
        raise IllFormed("NO_BRANCH", "branches: there are none; give at least one")
    check_branches(transaction.mode, transaction.branches, services)


def check_branches(mode: Mode, branches: Sequence[Branch], services: Sequence[str] = ANY) -> None:
    """All branches of a transaction together. Raises IllFormed."""
    if len(branches) > MAX_BRANCHES:
        raise IllFormed(
            "TOO_MANY_BRANCHES", f"branches: {len(branches)} are too many; at most {MAX_BRANCHES} are taken"
        )
    names: set[str] = set()
    total = 0
    for index, branch in enumerate(branches):
        where = f"branches[{index}]"
        wrong = complaint(f"{where}.name", branch.name, MAX_BRANCH)
        if wrong is not None:
            raise IllFormed("BAD_NAME", wrong)
        if branch.name in names:
            raise IllFormed("BRANCH_TWICE", f'{where}.name: "{branch.name}" is there already; names are unique')
        names.add(branch.name)
        _check_calls(mode, where, branch, services)
        total += sum(len(call.body) for call in (branch.forward, branch.finish, branch.undo) if call is not None)
    if total > MAX_TOTAL_BYTES:
        raise IllFormed("PAYLOAD_LIMIT", f"branches: {total} bytes of requests; at most {MAX_TOTAL_BYTES} are taken")
    _check_graph(branches, names)


def _check_calls(mode: Mode, where: str, branch: Branch, services: Sequence[str]) -> None:
    calls = {"forward": branch.forward, "finish": branch.finish, "undo": branch.undo}
    meanings = _MEANINGS[mode]
    for field, call in calls.items():
        if call is not None:
            if (field not in meanings and field != "forward") or (field == "forward" and mode is Mode.MESSAGE):
                raise IllFormed("BAD_CALL", f"{where}.{field}: a {mode} has no such call; leave it out")
            _check_call(f"{where}.{field}", call, services)
    if branch.cannot_be_undone and mode is not Mode.SAGA:
        raise IllFormed("BAD_OPTION", f"{where}.cannot_be_undone: only a saga's step can be so, not {mode}")
    if branch.cannot_be_undone and branch.undo is not None:
        raise IllFormed(
            "BAD_OPTION", f"{where}.undo: is given for a step that cannot be undone; leave one of the two out"
        )
    for field in _NEEDS[mode]:
        if calls[field] is None and not (field == "undo" and branch.cannot_be_undone):
            way_out = ", or say cannot_be_undone" if (mode, field) == (Mode.SAGA, "undo") else ""
            text = f'{where}.{field}: is missing; give {meanings[field]} of "{branch.name}"{way_out}'
            raise IllFormed("NO_COMPENSATION" if field == "undo" else "NO_CALL", text)


def _check_call(where: str, call: Call, services: Sequence[str]) -> None:
    parts = urlsplit(call.target)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        text = f'{where}.target: "{call.target[:100]}" has a scheme that is not known; {known} is'
        raise IllFormed("UNKNOWN_SCHEME", text)
    steps = parts.path.split("/")
    is_printable = call.target.isascii() and call.target.isprintable() and " " not in call.target
    if not is_printable or len(call.target) > MAX_TARGET:
        text = (
            f"{where}.target: {call.target[:100]!r} is no address; at most {MAX_TARGET} printable characters are taken"
        )
        raise IllFormed("BAD_TARGET", text)
    if not parts.netloc or len(steps) != 3 or not all(steps[1:]) or parts.query or parts.fragment:
        text = f'{where}.target: "{call.target[:100]}" is not grpc://HOST:PORT/PACKAGE.SERVICE/METHOD'
        raise IllFormed("BAD_TARGET", text)
    if not any(fnmatchcase(parts.netloc, pattern) for pattern in services):
        text = f'{where}.target: "{parts.netloc[:100]}" is no service that may be called; {", ".join(services)} may'
        raise IllFormed("UNKNOWN_SERVICE", text)
    if len(call.body) > MAX_BODY_BYTES:
        text = f"{where}.body: {len(call.body)} bytes; at most {MAX_BODY_BYTES} are taken"
        raise IllFormed("PAYLOAD_LIMIT", text)


def _check_graph(branches: Sequence[Branch], names: set[str]) -> None:
    after = {branch.name: branch.after for branch in branches}
    without_return = {branch.name for branch in branches if branch.cannot_be_undone}
    for index, branch in enumerate(branches):
        for name in branch.after:
            if name not in names:
                text = f'branches[{index}].after: there is no branch "{name}"'
                raise IllFormed("UNKNOWN_BRANCH", text)
            if name in without_return and branch.name not in without_return:
                text = (
                    f'branches[{index}].after: "{branch.name}" can be undone but comes after "{name}", which cannot;'
                    " steps without a way back come last"
                )
                raise IllFormed("NO_WAY_BACK", text)
    circle = _cycle(after)
    if circle:
        raise IllFormed("CYCLE", f"branches: {' after '.join(circle)} is a circle; break it")


def _cycle(after: dict[str, tuple[str, ...]]) -> list[str]:
    """A circle, its first name again at the end; empty if there is none."""
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        stack = [(start, iter(after[start]))] if start not in done else []
        if stack:
            path.append(start)
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                stack.append((following, iter(after[following])))
    return []
