"""Aims, page and plots, made of samples as a run gives them."""

import json
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.aims import AIMS, Aim, is_reached, ratios
from benchmarks.measure import METRICS
from benchmarks.proxies import PROXIES
from benchmarks.report import (
    CHARTS,
    FIGURES_END,
    FIGURES_START,
    Document,
    cell,
    document,
    page,
    update_front_page,
    write,
)
from benchmarks.rows import ROWS
from benchmarks.run import Result
from benchmarks.svg import Bar, Group, bar_chart

ROW = next(row for row in ROWS if row.name == "unary-100")
AIM = Aim("one", "unary-100", "cpu_us", "sidecar", "envoy", at_most=0.5)


def _run(**samples: list[float]) -> Document:
    result = Result(ROW, {label: [{"cpu_us": value} for value in values] for label, values in samples.items()})
    result.errors["nginx"] = "1 of 2 calls succeeded"
    run = document(
        [result],
        date="2030-01-01 00:00 UTC",
        machine={"cpu": "a <fast> one", "cores": "2", "memory": "8 GiB", "kernel": "6", "others": "0.00"},
        versions={"envoy": "1.40.0"},
        missing={"haproxy": "haproxy is not installed"},
        rounds=3,
        scale=1.0,
    )
    loaded: Document = json.loads(json.dumps(run))
    return loaded


def test_a_ratio_is_that_of_one_round_and_the_median_decides() -> None:
    samples = {
        "sidecar": [{"cpu_us": 10.0}, {"cpu_us": 40.0}, {"cpu_us": 20.0}],
        "envoy": [{"cpu_us": 40.0}, {"cpu_us": 80.0}, {"cpu_us": 10.0}],
    }
    assert ratios(AIM, samples) == [0.25, 0.5, 2.0]
    assert is_reached(AIM, [0.25, 0.5, 2.0]) is True
    assert is_reached(AIM, [0.51]) is False
    assert is_reached(AIM, []) is None
    assert is_reached(Aim("more", "huge", "mb_per_s", "sidecar", "envoy", at_least=0.8), [0.7]) is False


def test_what_is_smaller_than_the_noise_is_not_measured() -> None:
    samples = {"sidecar": [{"cpu_us": -1.0}, {"cpu_us": 1.0}], "envoy": [{"cpu_us": 4.0}, {"cpu_us": 4.0}]}
    assert ratios(AIM, samples) == []
    assert ratios(AIM, {label: [*found, {"cpu_us": 2.0}] for label, found in samples.items()}) == [0.25, 1.0]


def test_calls_per_second_of_a_proxy_that_was_not_saturated_are_a_lower_bound() -> None:
    row = {
        "figures": ["calls_per_s", "cores"],
        "samples": {
            "sidecar": [{"calls_per_s": 9000.0, "cores": 0.5}],
            "envoy": [{"calls_per_s": 9000.0, "cores": 0.95}],
        },
    }
    assert cell(row, "sidecar", "calls_per_s") == "≥ 9,000"
    assert cell(row, "envoy", "calls_per_s") == "9,000"


def test_aims_and_plots_name_rows_ways_and_metrics_that_there_are() -> None:
    rows = {row.name: row for row in ROWS}
    for aim in AIMS:
        labels = [way.label for way in rows[aim.row].ways]
        assert aim.subject in labels and aim.against in labels
        assert aim.metric in rows[aim.row].figures
        assert (aim.at_most is None) != (aim.at_least is None)
    for _, _, _, metric, names in CHARTS:
        assert metric in METRICS and set(names) <= set(rows)
    assert all(way.proxy in PROXIES for row in ROWS for way in row.ways)


def test_the_page_says_what_was_reached_what_failed_and_what_was_not_there() -> None:
    text = page(_run(sidecar=[10, 12, 11], envoy=[40, 40, 40]), [])
    assert "| 100 in flight | sidecar | envoy | ≤ 0.25 | 0.28 (0.25–0.30) | **not reached** |" in text
    assert "| 100 in flight, first milestone | sidecar | envoy | ≤ 0.5 | 0.28 (0.25–0.30) | reached |" in text
    assert "| sidecar | 11.0 (10.0–12.0) |" in text
    assert "| nginx | failed: 1 of 2 calls succeeded |" in text
    assert "haproxy is not installed" in text


def test_the_front_page_gets_its_figures_between_the_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{FIGURES_START}\nold\n{FIGURES_END}\nafter\n")
    run = _run(sidecar=[10, 12, 11], envoy=[40, 40, 40])
    assert update_front_page(run, readme)
    once = readme.read_text()
    assert "old" not in once and "| 11 | 40 |" in once and once.startswith("before\n") and once.endswith("\nafter\n")
    assert update_front_page(run, readme) and readme.read_text() == once
    readme.write_text("no marks\n")
    assert not update_front_page(run, readme) and readme.read_text() == "no marks\n"


def test_all_that_a_run_leaves_is_written(tmp_path: Path) -> None:
    paths = write(_run(sidecar=[10, 12, 11], envoy=[40, 40, 40]), tmp_path)
    assert {path.name for path in paths} == {"latest.json", "cpu.svg", "README.md"}
    assert "(cpu.svg)" in (tmp_path / "README.md").read_text()


def test_a_plot_is_valid_in_scale_and_cuts_what_would_flatten_the_rest() -> None:
    group = Group(
        "a < b", (Bar("ours", 10, 9, 11, True), Bar("theirs", 20, 18, 22), Bar("slow & slower", 2000, 2000, 2000))
    )
    root = ElementTree.fromstring(bar_chart("CPU & more", "µs", [group]))
    space = "{http://www.w3.org/2000/svg}"
    ours, theirs, slow = (float(bar.get("width", "")) for bar in root.findall(f"{space}rect")[1:])
    assert theirs == 2 * ours
    assert slow == 5 * theirs
    words = [text.text for text in root.iter(f"{space}text")]
    assert "slow & slower" in words and "2,000 (cut)" in words
