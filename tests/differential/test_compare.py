"""The harness can fail: each kind of fault is one."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.differential.cases import Case, load
from tests.differential.client import Outcome
from tests.differential.compare import CHI_SQUARE_LIMIT, chi_square, faults

LINES = ("1: 200 grpc 0 from a",)
CASE = Case("file", "case", (), expect=(("envoy", LINES), ("remora", LINES)))


def outcomes(**of_remora: Any) -> dict[str, Outcome]:
    def made() -> Outcome:
        return Outcome(lines=list(LINES), detail={"lines": list(LINES), "upstream": 1}, attempts={"a": 1})

    return {"envoy": made(), "remora": replace(made(), **of_remora)}


def test_the_same_as_expected_is_no_fault() -> None:
    assert faults(CASE, outcomes()) == []


@pytest.mark.parametrize(
    ("case", "of_remora", "expected"),
    [
        (CASE, {"lines": ["1: RST CANCEL"]}, "-1: 200 grpc 0 from a\n+1: RST CANCEL"),
        (CASE, {"detail": {"lines": list(LINES), "upstream": 2}}, "'upstream': 2"),
        (CASE, {"has_silent_errors": True}, "without a grpc-message"),
        (replace(CASE, attempts=(("a", 2),)), {}, "remora: a saw 1 requests, not 2"),
        (replace(CASE, differs="strict"), {}, "the engines agree; take `differs: strict` away"),
        (
            replace(CASE, spread=(("a", 0.5), ("b", 0.5))),
            {"spread": Counter(a=90, b=10)},
            "remora: {'a': 90, 'b': 10} is not",
        ),
        (replace(CASE, spread=(("a", 1.0),)), {"spread": Counter(a=9, b=1)}, "remora: answers from ['b']"),
    ],
)
def test_each_fault_is_found_and_said(case: Case, of_remora: dict[str, Any], expected: str) -> None:
    assert any(expected in fault for fault in faults(case, outcomes(**of_remora)))


def test_a_documented_difference_is_no_fault() -> None:
    case = replace(CASE, differs="strict", expect=(("envoy", LINES), ("remora", ("1: open",))))
    assert faults(case, outcomes(lines=["1: open"], detail={"lines": ["1: open"]})) == []


def test_a_fair_spread_is_far_below_the_limit_and_an_unfair_one_far_above() -> None:
    shares = {"a": 0.9, "b": 0.1}
    assert chi_square(Counter(a=910, b=90), shares) < 2 < CHI_SQUARE_LIMIT[1]
    assert chi_square(Counter(a=800, b=200), shares) > 3 * CHI_SQUARE_LIMIT[1]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("{name: x, skript: []}", "unknown ['skript']"),
        ("{name: x, script: []}", "expects nothing"),
        ("{name: x, script: [], expect: {envoy: [a], remora: [b]}}", "different expectations need a reason"),
    ],
)
def test_a_slip_of_the_pen_in_a_case_is_an_error(tmp_path: Path, case: str, expected: str) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(f"about: x\nbootstrap: {{}}\nbackends: {{}}\ncases:\n- {case}\n")
    with pytest.raises(ValueError) as caught:
        load(path)
    assert expected in str(caught.value)
