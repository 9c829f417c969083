"""The load generator: what it buys, what it counts, how it ends."""

import json
import signal
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.bookstore.shoppers.__main__ import plan_of
from apps.bookstore.shoppers.latency import Latencies
from apps.bookstore.shoppers.load import Plan, purchases
from apps.bookstore.shoppers.tally import Tally
from proto.bookstore.v1 import orders_pb2
from tests.apps.bookstore.shop import ABSENT, Pass, Shop, gate, running
from tests.waiting import eventually


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@given(st.lists(st.floats(0.01, 100_000), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_right_to_one_percent(latencies: list[float], share: float) -> None:
    counted = Latencies()
    for each in latencies:
        counted.add(each)
    enough = counted.quantile(share)
    at_most = sum(each <= enough * 1.01 for each in latencies)
    below = sum(each < enough / 1.01 for each in latencies)
    assert at_most >= share * len(latencies) - 1e-9
    assert below < share * len(latencies) + 1e-9


def test_without_calls_there_is_no_latency() -> None:
    assert Latencies().summary() == {"p50": 0, "p95": 0, "p99": 0}


def test_a_seed_decides_what_is_bought() -> None:
    def bought(seed: int, prefix: str) -> list[tuple[str, str, int]]:
        plan = Plan(orders=ABSENT, rate=1, seed=seed, prefix=prefix)
        return [(each.reader, each.book, each.copies) for each in islice(purchases(plan), 50)]

    assert bought(7, "a") == bought(7, "b")
    assert bought(7, "a") != bought(8, "a")


def test_two_runs_do_not_mistake_each_others_orders_for_their_own() -> None:
    plans = [Plan(orders=ABSENT, rate=1, seed=7, prefix=prefix) for prefix in ("a", "b")]
    ids = [each.order_id for plan in plans for each in islice(purchases(plan), 50)]
    assert len(set(ids)) == 100


def test_a_line_has_all_so_far_and_what_came_since_the_line_before() -> None:
    tally = Tally()
    order = orders_pb2.Order(
        copies=2, amount_cents=500, warehouse_version="v2", warehouse_instance="c", repeated_calls=1
    )
    for outcome, answer in (("OK", order), ("UNAVAILABLE", None)):
        tally.due += 1
        tally.sent()
        tally.done(outcome, 0.010, answer)
    first = json.loads(tally.line(1.0))
    tally.due += 1
    tally.sent()
    tally.done("OK", 0.020, order)
    second = json.loads(tally.line(2.0, is_final=True))
    assert first["outcomes"] == first["last"]["outcomes"] == {"OK": 1, "UNAVAILABLE": 1}
    assert (second["outcomes"], second["last"]["outcomes"]) == ({"OK": 2, "UNAVAILABLE": 1}, {"OK": 1})
    assert second["spread"] == {"v2/c": 2}
    assert (second["calls"], second["due"], second["in_flight"]) == (3, 3, 0)
    assert (second["copies"], second["amount_cents"], second["repeated_calls"]) == (4, 1000, 2)
    assert second["last"]["latency_ms"]["p50"] == pytest.approx(20, rel=0.01)
    assert (first["final"], second["final"]) == (False, True)


def test_readers_shop_for_as_long_as_they_are_told(shop: Shop, tmp_path: Path) -> None:
    words = ("--orders", shop.targets["orders"], "--rate", "40", "--seed", "7", "--for", "1.5s", "--every", "500ms")
    with running(tmp_path, "shoppers", *words) as shoppers:
        out, _ = shoppers.process.communicate(timeout=30)
    lines = lines_of(out)
    final = lines[-1]
    assert [line["final"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) >= 3
    assert final["outcomes"] == {"OK": 60}
    assert final["spread"] == {"v1/warehouse-a": 60}
    assert (final["due"], final["calls"], final["skipped"], final["in_flight"]) == (60, 60, 0, 0)
    assert shoppers.process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_calls_finish_and_the_last_line_be_written(
    shop: Shop, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = ("--orders", shop.targets["orders"], "--rate", "100", "--every", "100ms")
    with running(tmp_path, "shoppers", *words) as shoppers:
        assert shoppers.process.stdout is not None
        first = json.loads(eventually(shoppers.process.stdout.readline))
        shoppers.process.send_signal(number)
        out, _ = shoppers.process.communicate(timeout=30)
    final = lines_of(out)[-1]
    assert (first["final"], final["final"]) == (False, True)
    assert final["in_flight"] == 0
    assert final["calls"] == final["due"] == final["outcomes"]["OK"]
    assert shoppers.process.returncode == code


def test_the_next_purchase_does_not_wait_for_a_slow_one_and_the_number_in_flight_is_bounded(
    shop: Shop, tmp_path: Path
) -> None:
    let_go = Event()

    def hold(send: Pass, context: object) -> bytes:
        let_go.wait(20)
        return send()

    with gate(shop.targets["orders"]) as slow:
        slow.rules["Purchase"] = hold
        words = ("--orders", slow.address, "--rate", "50", "--in-flight", "5", "--timeout", "20s", "--every", "100ms")
        with running(tmp_path, "shoppers", *words) as shoppers:
            assert shoppers.process.stdout is not None
            line = next(line for line in map(json.loads, shoppers.process.stdout) if line["skipped"])
            assert (line["in_flight"], line["calls"]) == (5, 0)
            let_go.set()
            shoppers.process.send_signal(signal.SIGTERM)
            out, _ = shoppers.process.communicate(timeout=30)
    final = lines_of(out)[-1]
    assert final["calls"] + final["skipped"] == final["due"]
    assert final["outcomes"]["OK"] == final["calls"] >= 5
    assert final["latency_ms"]["p99"] > 100, "counted from when it was due"


def test_a_shop_that_is_not_there_is_counted_and_no_error(tmp_path: Path) -> None:
    with running(tmp_path, "shoppers", "--orders", ABSENT, "--rate", "20", "--for", "300ms") as shoppers:
        out, _ = shoppers.process.communicate(timeout=30)
    final = lines_of(out)[-1]
    assert final["outcomes"] == {"UNAVAILABLE": final["due"]}
    assert final["due"] in (6, 7), "one every 50 ms, and perhaps one at the very end"
    assert shoppers.process.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--for", "0s"], '"0s" is no duration above 0'),
        (["--for", "soon"], '"soon" is no duration above 0, such as 30s'),
        (["--rate", "0"], '"0" is out of range'),
        (["--rate", "nan"], '"nan" is out of range'),
        (["--in-flight", "0"], '"0" is out of range; 1 to 10000 is needed'),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan_of(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
