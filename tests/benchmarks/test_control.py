"""The control plane's bench: nodes that behave, changes that arrive, figures that mean what they say."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.control import frames
from benchmarks.control.aims import AIMS, Aim, is_reached, measured
from benchmarks.control.dataplane import CLUSTER, ENDPOINTS, Delta, Shared, StateOfTheWorld, mark, node, tail
from benchmarks.control.measure import METRICS, Plan, Result
from benchmarks.control.report import CHARTS, document, page
from benchmarks.control.rows import ROWS, WAYS
from benchmarks.processes import ROOT
from tests.tools import need
from tests.waiting import eventually_async

TIMEOUT_S = 120.0
BY_NAME = {row.name: row for row in ROWS}


# -- the bench as a program ------------------------------------------------------------------------------


def _bench(folder: Path, *words: str) -> dict[str, Any]:
    scratch, output = folder / "scratch", folder / "output"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.control", "--rounds", "1", "--output", str(output), *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == []
    assert (output / "control.md").exists()
    run: dict[str, Any] = json.loads((output / "control.json").read_text())
    return run


def _sample(run: dict[str, Any], row: str, way: str) -> dict[str, float]:
    [found] = [each for each in run["rows"] if each["name"] == row]
    [sample] = found["samples"][way]
    assert set(found["figures"]) <= set(sample)
    return dict(sample)


def test_twenty_nodes_get_every_change_and_the_times_are_in_order(tmp_path: Path) -> None:
    rows = ["open/100", "endpoint/100", "route/100", "burst/100"]
    run = _bench(tmp_path, *rows, "--scale", "0.2", "--ways", "remora/sotw")
    opened = _sample(run, "open/100", "remora/sotw")
    assert opened["in_kib"] > 10 and opened["rss_kib"] > 0
    for row in rows[1:]:
        sample = _sample(run, row, "remora/sotw")
        assert 0 < sample["first_ms"] <= sample["p50_ms"] <= sample["p99_ms"] <= sample["last_ms"] < 60_000
        assert sample["push_us"] > 0 and sample["pushes"] >= 1
    assert _sample(run, "endpoint/100", "remora/sotw")["pushes"] == 1
    assert _sample(run, "route/100", "remora/sotw")["in_kib"] > _sample(run, "endpoint/100", "remora/sotw")["in_kib"]


def test_a_grpc_library_sees_the_same_pushes(tmp_path: Path) -> None:
    run = _bench(tmp_path, "endpoint/100", "--scale", "0.1", "--ways", "remora/sotw", "--client", "grpcio")
    sample = _sample(run, "endpoint/100", "remora/sotw")
    assert sample["pushes"] == 1 and 0 < sample["in_kib"] < 10


@pytest.mark.slow
def test_go_control_plane_gets_the_same_changes(tmp_path: Path) -> None:
    need("go")
    rows = ["endpoint/100", "route/100", "burst/100", "rolling/100"]
    run = _bench(tmp_path, *rows, "--scale", "0.1", "--ways", "remora/sotw,go/sotw,go/delta")
    for row in rows:
        sizes = {way: _sample(run, row, way) for way in ("remora/sotw", "go/sotw", "go/delta")}
        assert all(sample["last_ms"] > 0 for sample in sizes.values())
    remora, go = (_sample(run, "route/100", way)["in_kib"] for way in ("remora/sotw", "go/sotw"))
    assert go == pytest.approx(remora, rel=0.05)


def test_wrong_words_are_refused() -> None:
    for words in (["endpoint/7"], ["--ways", "rust/sotw"]):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.control", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert words[-1] in done.stderr


# -- a node --------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=40)
RESOURCES = st.lists(st.builds(any_pb2.Any, type_url=st.sampled_from([CLUSTER, ENDPOINTS, ""]), value=st.binary()))


@given(version=TEXT, url=st.sampled_from([CLUSTER, ENDPOINTS, "", "other"]), nonce=TEXT, resources=RESOURCES)
def test_the_end_of_a_response_says_what_the_whole_says_or_nothing(
    version: str, url: str, nonce: str, resources: list[Any]
) -> None:
    response = discovery_pb2.DiscoveryResponse(version_info=version, type_url=url, nonce=nonce, resources=resources)
    assert tail(response.SerializeToString()) in (None, (url, nonce))


def _clusters(*names: str) -> list[any_pb2.Any]:
    packed = []
    for name in names:
        packed.append(any_pb2.Any())
        packed[-1].Pack(cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS))
    return packed


def _assignment(*versions: str) -> any_pb2.Any:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name="shop")
    for version in versions:
        labels = message.endpoints.add().lb_endpoints.add().metadata.filter_metadata["envoy.lb"]
        labels.fields["version"].string_value = version
    return any_pb2.Any(type_url=ENDPOINTS, value=message.SerializeToString())


def test_a_node_acks_with_version_nonce_and_all_names_and_notes_its_marks_once() -> None:
    shared = Shared()
    plane = StateOfTheWorld(3, node(3, "orders"), shared)
    first = [discovery_pb2.DiscoveryRequest.FromString(data) for data in plane.start()]
    assert [bool(request.node.id) for request in first] == [True, False]
    response = discovery_pb2.DiscoveryResponse(type_url=CLUSTER, nonce="n0", resources=_clusters("a", "b"))
    plane.on_response(response.SerializeToString(), 9.0)
    shared.expect([mark(1), mark(2)])
    for nonce, now in (("n1", 10.0), ("n2", 11.0)):
        response = discovery_pb2.DiscoveryResponse(
            version_info="v7", type_url=ENDPOINTS, nonce=nonce, resources=[_assignment(mark(1), "v1")]
        )
        [answer] = map(discovery_pb2.DiscoveryRequest.FromString, plane.on_response(response.SerializeToString(), now))
        assert (answer.version_info, answer.response_nonce, answer.type_url) == ("v7", nonce, ENDPOINTS)
        assert list(answer.resource_names) == ["a", "b"]
    assert shared.marks == {b"000001": {3: 10.0}, b"000002": {}}
    assert shared.responses["ClusterLoadAssignment"] == 2


def test_a_delta_node_subscribes_to_what_clusters_name_and_unsubscribes_when_they_go() -> None:
    def clusters(nonce: str, *names: str, removed: tuple[str, ...] = ()) -> bytes:
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=CLUSTER, nonce=nonce, removed_resources=removed)
        for name, packed in zip(names, _clusters(*names), strict=True):
            response.resources.add(name=name, version="1", resource=packed)
        data: bytes = response.SerializeToString()
        return data

    plane = Delta(1, node(1, "orders"), Shared())
    plane.start()
    parse = discovery_pb2.DeltaDiscoveryRequest.FromString
    ack, asked = map(parse, plane.on_response(clusters("1", "a", "b"), 1.0))
    assert (ack.response_nonce, list(ack.resource_names_subscribe)) == ("1", [])
    assert (asked.type_url, list(asked.resource_names_subscribe)) == (ENDPOINTS, ["a", "b"])
    _, left = map(parse, plane.on_response(clusters("2", removed=("b",)), 2.0))
    assert (list(left.resource_names_subscribe), list(left.resource_names_unsubscribe)) == ([], ["b"])


# -- the wire ----------------------------------------------------------------------------------------------------


async def test_frames_carry_messages_of_any_size_both_ways_within_the_windows() -> None:
    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    failures: list[Exception] = []
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: frames.Connection("/a.B/C", failures.append), "127.0.0.1", port
    )
    sizes = [0, 1, 16_383, 16_384, 70_000, 3_000_000]
    got: dict[int, list[int]] = {}
    streams = []
    for _ in range(3):
        mine: list[int] = []
        stream = connection.open(lambda data, mine=mine: mine.append(len(data)))  # type: ignore[misc]
        got[stream] = mine
        streams.append(stream)
    for size in sizes:
        for stream in streams:
            connection.send(stream, b"x" * size)
    await eventually_async(lambda: failures or all(found == sizes for found in got.values()), timeout_s=30)
    assert failures == []
    assert connection.received > 3 * sum(sizes) < connection.sent
    await server.stop(None)
    await eventually_async(lambda: failures, message="the end of the connection is told")
    connection.close()


# -- aims and page ---------------------------------------------------------------------------------------------------


def test_aims_and_plots_name_rows_ways_and_metrics_that_there_are() -> None:
    for aim in AIMS:
        for place in (aim.subject, aim.against):
            if place is not None:
                row, way = place
                assert aim.metric in BY_NAME[row].scenario.figures
                assert any(known == way or (way.endswith("/*") and known.startswith(way[:-1])) for known in WAYS)
    for _, _, _, metric, names in CHARTS:
        assert metric in METRICS and set(names) <= set(BY_NAME)


def test_the_better_variant_of_each_round_counts_and_the_median_decides() -> None:
    aim = Aim("one", "last_ms", ("endpoint/1000", "remora/*"), 1.5, ("endpoint/1000", "go/*"))
    rows = {
        "endpoint/1000": {
            "remora/sotw": [{"last_ms": 30.0}, {"last_ms": 10.0}],
            "remora/delta": [{"last_ms": 20.0}, {"last_ms": 40.0}],
            "go/sotw": [{"last_ms": 10.0}, {"last_ms": 20.0}],
        }
    }
    assert measured(aim, rows) == [2.0, 0.5]
    assert is_reached(aim, [2.0, 0.5]) is True
    assert is_reached(aim, [1.6]) is False
    assert is_reached(aim, measured(aim, {})) is None


def test_the_page_says_what_was_reached_what_failed_and_what_was_not_there() -> None:
    opened, changed = Result(BY_NAME["open/1000"]), Result(BY_NAME["burst/1000"])
    opened.samples["remora/sotw"] = [dict.fromkeys(opened.row.scenario.figures, 59.0)]
    changed.samples["remora/sotw"] = [dict.fromkeys(changed.row.scenario.figures, 7.0)]
    changed.errors["go/sotw"] = "12 ACKs were missing after 180 s"
    facts = {"cpu": "a fast one", "cores": "2", "memory": "8 GiB", "kernel": "6", "others": "0.00"}
    run = document(
        [opened, changed],
        Plan(1, 1.0, simulators=2, client="frames"),
        date="2030-01-01 00:00 UTC",
        machine=facts,
        versions={"go-control-plane": "0.14.0"},
        missing={"remora/delta": "this control plane does not speak it"},
    )
    text = page(json.loads(json.dumps(run)), [])
    assert "| remora/sotw, `open/1000` |  | ≤ 60 | 59.00 | reached |" in text
    assert "| remora/*, `burst/1000` |  | ≤ 5 | 7.00 | **not reached** |" in text
    assert "| go/sotw | failed: 12 ACKs were missing after 180 s |" in text
    assert "Not measured: remora/delta" in text
    text = page({**run, "scale": 0.1}, [])
    assert "59.00" in text and "reached" not in text
