"""What is wrong with the outcomes of a case, in words; nothing if the engines agree, or differ as the documents say."""

import difflib
from collections import Counter
from pprint import pformat
from typing import Final

from tests.differential.cases import Case
from tests.differential.client import Outcome

CHI_SQUARE_LIMIT: Final = {0: 0.0, 1: 28.37, 2: 32.24, 3: 35.44, 4: 38.31, 5: 40.86, 6: 43.34, 7: 45.7, 8: 47.97}
"""By degrees of freedom: a right build exceeds it once in 10,000,000 cases."""
LONGEST_LINE: Final = 160


def chi_square(seen: Counter[str], shares: dict[str, float]) -> float:
    """How far counts are from the shares that they should have."""
    total = sum(seen.values())
    return sum((seen[name] - total * share) ** 2 / (total * share) for name, share in shares.items())


def faults(case: Case, outcomes: dict[str, Outcome]) -> list[str]:
    """One text a fault."""
    found: list[str] = []
    expected = dict(case.expect)
    for engine, outcome in outcomes.items():
        if engine in expected and list(expected[engine]) != outcome.lines:
            found.append(_diff(f"expected of {engine}", list(expected[engine]), f"{engine} did", outcome.lines))
        for name, count in case.attempts:
            if outcome.attempts[name] != count:
                found.append(f"{engine}: {name} saw {outcome.attempts[name]} requests, not {count}")
        for name, count in case.connections:
            if outcome.connections[name] != count:
                found.append(f"{engine}: {name} saw {outcome.connections[name]} connections, not {count}")
        if case.spread:
            found += _spread_faults(engine, outcome.spread, dict(case.spread))
    if outcomes["remora"].has_silent_errors:
        found.append("remora: refused a call without a grpc-message")
    first, second = outcomes
    if case.is_loose:
        for outcome in outcomes.values():
            outcome.detail.pop("upstream", None)
    is_same = outcomes[first].detail == outcomes[second].detail
    if case.differs and is_same:
        found.append(f"the engines agree; take `differs: {case.differs}` away")
    if not case.differs and not case.spread and not is_same:
        one, other = (pformat(outcomes[name].detail, width=110).splitlines() for name in (first, second))
        found.append(_diff(first, one, second, other))
    return found


def _spread_faults(engine: str, seen: Counter[str], shares: dict[str, float]) -> list[str]:
    if not seen:
        return [f"{engine}: no calls were counted"]
    strangers = set(seen).difference(shares)
    if strangers:
        return [f"{engine}: answers from {sorted(strangers)}: {dict(seen)}"]
    distance = chi_square(seen, shares)
    if distance > CHI_SQUARE_LIMIT[len(shares) - 1]:
        return [f"{engine}: {dict(seen)} is not {shares} (chi-square {distance:.1f})"]
    return []


def _diff(one_name: str, one: list[str], other_name: str, other: list[str]) -> str:
    lines = difflib.unified_diff(one, other, one_name, other_name, lineterm="", n=1)
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}… ({len(line)})" for line in lines)
