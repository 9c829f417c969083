"""The demo: true to its exit code, and gone without a trace however it ends; what its table is made of."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from remora.agent.child import tree
from remora.demo import envoy_stats
from remora.demo.observe import EdgeView, Sample, View, compare, read
from remora.demo.screen import draw, plain
from tests.mesh import ROOT, Process, environment, is_alive
from tests.waiting import eventually

# -- from start to end ----------------------------------------------------------------------------------


@contextmanager
def demo(directory: Path, *words: str) -> Iterator[Process]:
    """A running demo whose temporary files are in a directory; killed at the end if it still runs."""
    scratch = directory / "scratch"
    scratch.mkdir()
    process = Process(directory, "demo", ["demo", *words], environment(TMPDIR=str(scratch)))
    try:
        yield process
    finally:
        process.kill()


def is_nothing_left(directory: Path, pids: list[int]) -> bool:
    """No process of a demo, and none of its files."""
    left = [*filter(is_alive, pids), *(directory / "scratch").iterdir()]
    if left:
        print(f"left: {left}")
    return not left


@pytest.mark.slow
def test_the_demo_holds_what_it_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path, "--for", "1s") as process:
        process.until("1. Calls are spread", "out")
        pids = tree(process.pid)
        assert len(pids) >= 1 + 1 + 3 * 6  # the control plane; six programs, each with a sidecar and what keeps both
        assert process.wait(180) == 0, process.out + process.err
    lines = process.out.splitlines()
    held = re.fullmatch(r"all (\d+) expectations held", lines[-1])
    assert held and int(held[1]) == process.out.count("✓ observed") >= 12
    assert process.out.count("   expected  ") == int(held[1]) and "NOT SO" not in process.out
    assert process.err == ""
    # Without a terminal the table is printed as lines, now and then.
    assert re.search(r"orders -> accounts\.shop v1: \d+\.\d calls/s, 100\.0% success", process.out)
    assert is_nothing_left(tmp_path, pids)


@pytest.mark.slow
def test_the_tour_is_the_same_on_three_data_planes(tmp_path: Path) -> None:
    with demo(tmp_path, "--engine", "mixed", "--for", "1s") as process:
        assert process.wait(180) == 0, process.out + process.err
    assert re.search(r"✓ observed  \d envoy, 1 grpc, \d remora; 0 refuse", process.out)
    assert re.search(
        r"GRPC_XDS_BOOTSTRAP=\S+ python -m apps.bookstore.shoppers --orders xds:///orders.shop", process.out
    )
    assert re.search(r"^all \d+ expectations held$", process.out, re.MULTILINE)
    assert is_nothing_left(tmp_path, [])


def test_ctrl_c_in_the_middle_ends_everything(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        process.until("1. Calls are spread", "out")
        pids = tree(process.pid)
        process.send(signal.SIGINT)
        assert process.wait() == 130
    assert len(pids) > 20
    assert is_nothing_left(tmp_path, pids)
    assert "Traceback" not in process.err


def test_ctrl_c_twice_does_not_wait_for_drains(tmp_path: Path) -> None:
    """While the processes start, which is when they cannot be asked kindly yet."""
    with demo(tmp_path) as process:
        process.until("remora run --service", "out")
        eventually(lambda: len(tree(process.pid)) > 6)
        pids = tree(process.pid)
        process.send(signal.SIGINT)
        process.until("stopping all processes", "out")
        process.send(signal.SIGINT)
        assert process.wait(20) == 130
    eventually(lambda: is_nothing_left(tmp_path, pids), message="something is left")


def test_a_reader_that_has_seen_enough_ends_the_demo(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "remora", "demo"],
        stdout=writer, stderr=subprocess.PIPE, env=environment(TMPDIR=str(scratch)), cwd=ROOT, text=True,
    )  # fmt: skip
    os.close(writer)
    try:
        assert os.read(reader, 1)
        pids = tree(process.pid)
        os.close(reader)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, "")
    eventually(lambda: is_nothing_left(tmp_path, pids), message="something is left")


# -- the table ------------------------------------------------------------------------------------------

METRICS = """\
# TYPE remora_requests counter
remora_requests_total{{direction="outbound",service="warehouse.shop",version="v1",grpc_status="OK",flags=""}} {good}
remora_requests_total{{direction="outbound",service="warehouse.shop",version="v1",grpc_status="UNAVAILABLE",flags="UF"}} {bad}
remora_requests_total{{direction="inbound",service="",version="",grpc_status="OK",flags=""}} 999
# TYPE remora_request_duration_seconds histogram
remora_request_duration_seconds_bucket{{direction="outbound",service="warehouse.shop",version="v1",le="0.001"}} {fast}
remora_request_duration_seconds_bucket{{direction="outbound",service="warehouse.shop",version="v1",le="0.01"}} {all}
remora_request_duration_seconds_bucket{{direction="outbound",service="warehouse.shop",version="v1",le="+Inf"}} {all}
# TYPE remora_rate_limited counter
remora_rate_limited_total{{policy="shop/limit",mode="Enforce"}} {limited}
remora_rate_limited_total{{policy="shop/limit",mode="Shadow"}} 999
# TYPE remora_retries counter
remora_retries_total{{service="warehouse.shop",reason="connect-failure"}} {moved}
"""


def sample(at: float, **counts: int) -> Sample:
    """What one look at the sidecar of `orders.shop` gives."""
    found = Sample(at, nodes=3)
    read(METRICS.format(**counts), "orders", "shop", found)
    found.instances["warehouse.shop", "v1"] = 2
    return found


def test_the_table_shows_what_happened_between_two_looks() -> None:
    old = sample(10.0, good=100, bad=10, fast=100, all=110, limited=5, moved=1)
    new = sample(12.0, good=190, bad=20, fast=150, all=210, limited=25, moved=5)
    view = compare(old, new)
    (edge,) = view.edges
    assert edge.edge == ("orders", "warehouse.shop", "v1")
    assert (edge.rate, edge.success, edge.instances, edge.moved) == (50.0, 0.9, 2, 2.0)
    # Half of the calls took up to a millisecond; the others are spread evenly up to ten.
    assert [edge.p50_ms, edge.p95_ms] == pytest.approx([1.0, 9.1])
    assert (view.nodes, view.span_s) == (3, 2.0)


def test_refusals_are_shown_on_the_first_edge_to_the_service_that_they_protect() -> None:
    old, new = Sample(0.0), Sample(1.0)
    for caller in ("basket", "shoppers"):
        for version in ("v1", "v2"):
            new.calls[caller, "orders.shop", version] = 10
    read(METRICS.format(good=0, bad=0, fast=0, all=0, limited=20, moved=0), "orders", "shop", new)
    assert [edge.refused for edge in compare(old, new).edges if edge.edge[1] == "orders.shop"] == [20.0, 0, 0, 0]


ENVOY = """\
# TYPE envoy_cluster_shop_upstream_rq_total counter
envoy_cluster_shop_upstream_rq_total{envoy_cluster_name="outbound|warehouse"} 40
# TYPE envoy_cluster_shop_upstream_rq counter
envoy_cluster_shop_upstream_rq{envoy_response_code="200",envoy_cluster_name="outbound|warehouse"} 40
# TYPE envoy_cluster_shop_external_upstream_rq_time histogram
envoy_cluster_shop_external_upstream_rq_time_bucket{envoy_cluster_name="outbound|warehouse",le="+Inf"} 40
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="control_plane"} 999
# TYPE envoy_cluster_shop_upstream_rq_retry counter
envoy_cluster_shop_upstream_rq_retry{envoy_cluster_name="outbound|warehouse"} 3
# TYPE envoy_http_local_rate_limit_enforced counter
envoy_http_local_rate_limit_enforced{envoy_local_http_ratelimit_prefix="shop/limit"} 7
# TYPE envoy_cluster_shop_upstream_rq_time histogram
envoy_cluster_shop_upstream_rq_time_bucket{envoy_cluster_name="outbound|warehouse",le="1"} 20
envoy_cluster_shop_upstream_rq_time_bucket{envoy_cluster_name="outbound|warehouse",le="+Inf"} 40
envoy_cluster_shop_upstream_rq_time_sum{envoy_cluster_name="outbound|warehouse"} 100
envoy_cluster_shop_upstream_rq_time_count{envoy_cluster_name="outbound|warehouse"} 40
"""


def test_envoys_own_counters_make_the_same_table_without_what_envoy_does_not_know() -> None:
    new = Sample(1.0)
    envoy_stats.read(ENVOY, "orders", "shop", new)
    (edge,) = compare(Sample(0.0), new).edges
    assert edge.edge == ("orders", "warehouse.shop", "")
    assert (edge.rate, edge.success, edge.moved, edge.p50_ms) == (40.0, None, 3.0, 1.0)
    assert new.limited == {"orders.shop": 7}
    assert plain(View((edge,)))[0].startswith("  orders -> warehouse.shop: 40.0 calls/s, unknown success, p50 1.0 ")


def test_edges_without_calls_are_not_shown() -> None:
    same = sample(1.0, good=1, bad=0, fast=1, all=1, limited=0, moved=0)
    assert compare(same, same).edges == ()
    assert plain(View()) == []


EDGE = EdgeView(("orders", "warehouse-v1.shop", "v1"), 79.4, 0.75, 1.2, 3.4, 5.6, instances=2, refused=60.1, moved=1.5)


def test_the_table_fits_into_a_hundred_columns_and_says_what_the_mesh_did() -> None:
    out = StringIO()
    Console(file=out, width=100).print(draw(View((EDGE,), nodes=7, span_s=4.0)))
    title, head, _, row = out.getvalue().splitlines()
    assert title.startswith("live: 7 sidecars, last 4 s")
    assert head.split() == [
        "caller",
        "→",
        "callee,",
        "version",
        "calls/s",
        "success",
        "p50",
        "p95",
        "p99",
        "ms",
        "the",
        "mesh",
    ]
    assert row.startswith("orders → warehouse-v1.shop v1") and "79.4" in row and "75.0%" in row
    assert "balances over 2, refuses 60" in row  # what does not fit is cut here, not in the numbers
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_lines_say_the_same_as_the_table() -> None:
    line, nodes = plain(View((EDGE,), nodes=7, span_s=4.0))
    assert line == (
        "  orders -> warehouse-v1.shop v1: 79.4 calls/s, 75.0% success, p50 1.2 p95 3.4 p99 5.6 ms; "
        "the mesh balances over 2, refuses 60.1/s, moves 1.5/s elsewhere"
    )
    assert nodes == "  7 sidecars"
