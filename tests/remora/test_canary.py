"""What is decided of a canary, by counts alone."""

import pytest

from remora.canary import Counts, Promotion, Verdict, since


def shares(promotion: Promotion) -> dict[str, float]:
    total = sum(promotion.weights.values())
    return {version: 100 * weight / total for version, weight in promotion.weights.items()}


def test_good_calls_take_a_canary_step_by_step_to_all_of_them() -> None:
    promotion = Promotion({"v1": 90, "v2": 10}, 99.0, step=40)
    assert promotion.judge(Counts(20, 0)) is Verdict.STEP
    assert shares(promotion) == {"v1": 50.0, "v2": 50.0}
    assert promotion.judge(Counts(200, 2)) is Verdict.STEP  # 99 % is not less than 99 %
    assert shares(promotion) == {"v1": 10.0, "v2": 90.0}
    assert promotion.judge(Counts(20, 0)) is Verdict.STEP
    assert shares(promotion) == {"v1": 0.0, "v2": 100.0}
    assert promotion.judge(Counts(19, 0)) is Verdict.WAIT
    assert promotion.judge(Counts(20, 0)) is Verdict.DONE


@pytest.mark.parametrize(("failures", "verdict"), [(1, Verdict.STEP), (2, Verdict.ABORT)])
def test_too_many_failures_take_it_back(failures: int, verdict: Verdict) -> None:
    promotion = Promotion({"v1": 90, "v2": 10}, 99.0)
    assert promotion.judge(Counts(100, failures)) is verdict
    assert shares(promotion) == ({"v1": 100.0, "v2": 0.0} if verdict is Verdict.ABORT else {"v1": 80.0, "v2": 20.0})


def test_few_calls_decide_nothing_however_they_end() -> None:
    promotion = Promotion({"v1": 90, "v2": 10}, 99.0, minimum_calls=50)
    assert promotion.judge(Counts(49, 49)) is Verdict.WAIT
    assert shares(promotion) == {"v1": 90.0, "v2": 10.0}


def test_the_others_keep_their_proportion() -> None:
    promotion = Promotion({"v1": 60, "v2": 30, "v3": 10}, 99.0, step=15)
    promotion.judge(Counts(20, 0))
    assert shares(promotion) == {"v1": 50.0, "v2": 25.0, "v3": 25.0}
    promotion.go_back()
    assert shares(promotion) == pytest.approx({"v1": 200 / 3, "v2": 100 / 3, "v3": 0.0})


def test_a_caller_that_began_anew_has_counted_from_nothing() -> None:
    before = {"a": Counts(100, 1), "b": Counts(50, 50), "gone": Counts(9, 9)}
    now = {"a": Counts(130, 2), "b": Counts(10, 0), "new": Counts(5, 1)}
    assert since(before, now) == Counts(45, 2)
