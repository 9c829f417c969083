"""What is scraped: it can be read, it adds up, and no caller can make more of it."""

import math
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families as read_text

from sidecar.telemetry.metrics import STATUS_NAMES, StatsCollector
from sidecar.telemetry.stats import BUCKETS_S, Stats
from tests.differential import script
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, dial, over, running

FLAGS = ("", "UF", "UH", "UO", "UR", "UC", "UT", "RL", "NR", "NC", "DC", "DPE", "UPE")


write_openmetrics: Any = exposition.generate_latest
read_openmetrics: Any = parser.text_string_to_metric_families


def registry(stats: Stats) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(StatsCollector(stats))
    return made


def samples(stats: Stats) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = generate_latest(registry(stats)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read_text(text)
        for sample in family.samples
    }


def value(stats: Stats, name: str, **labels: str) -> float:
    return samples(stats)[name, frozenset(labels.items())]


observations = st.tuples(
    st.sampled_from(["inbound", "outbound"]),
    st.sampled_from(["orders.shop", "stock.shop"]),
    st.sampled_from(["", "v1"]),
    st.sampled_from(["", "tls", "mutual_tls"]),
    st.integers(min_value=0, max_value=17),
    st.sampled_from(FLAGS),
    st.floats(min_value=0.0, max_value=100.0),
)


@given(st.lists(observations, max_size=60))
def test_every_call_is_counted_once_and_histograms_add_up(calls: list[tuple[Any, ...]]) -> None:
    stats = Stats()
    for direction, service, version, security, status, flag, seconds in calls:
        stats.of_calls(direction, service, version, security).observe(status, flag, seconds)
    found = samples(stats)
    for direction, service, version, security, status, flag, _ in calls:
        same = [call for call in calls if call[:6] == (direction, service, version, security, status, flag)]
        labels = {"direction": direction, "service": service, "version": version, "security": security}
        labels |= {"grpc_status": STATUS_NAMES[status], "flags": flag}
        assert found["remora_requests_total", frozenset(labels.items())] == len(same)
    assert sum(count for (name, _), count in found.items() if name == "remora_requests_total") == len(calls)
    for key in {call[:4] for call in calls}:
        labels = dict(zip(("direction", "service", "version", "security"), key, strict=True))
        mine = [call[6] for call in calls if call[:4] == key]
        for bound in (*BUCKETS_S, math.inf):
            text = "+Inf" if bound == math.inf else str(bound)
            bucket = frozenset({**labels, "le": text}.items())
            assert found["remora_request_duration_seconds_bucket", bucket] == sum(each <= bound for each in mine)
        assert found["remora_request_duration_seconds_count", frozenset(labels.items())] == len(mine)
        assert found["remora_request_duration_seconds_sum", frozenset(labels.items())] == pytest.approx(sum(mine))


def test_counters_have_names_help_and_values() -> None:
    stats = Stats(
        config_rejected=2, protocol_errors=3, decision_misses=4, connections_refused=5, control_plane_connected=1
    )
    stats.count_retry("stock.shop", "refused-stream")
    limit = stats.of_limit("orders")
    limit.refused, limit.would_refuse = 6, 7
    assert value(stats, "remora_config_rejected_total") == 2
    assert value(stats, "remora_protocol_errors_total") == 3
    assert value(stats, "remora_decision_misses_total") == 4
    assert value(stats, "remora_connections_refused_total") == 5
    assert value(stats, "remora_control_plane_connected") == 1
    assert value(stats, "remora_retries_total", service="stock.shop", reason="refused-stream") == 1
    assert value(stats, "remora_rate_limited_total", policy="orders", mode="Enforce") == 6
    assert value(stats, "remora_rate_limited_total", policy="orders", mode="Shadow") == 7
    for family in StatsCollector(stats).collect():
        assert family.name.startswith("remora_") and family.documentation.endswith(".")


def test_both_text_forms_say_the_same() -> None:
    stats = Stats()
    stats.of_calls("outbound", 'a"b\\c\nd', "v1").observe(14, "UF", 0.2)

    def found(families: Iterable[Any]) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
        return {
            (sample.name, frozenset((key, text) for key, text in sample.labels.items() if key != "le"), sample.value)
            for family in families
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    text = found(read_text(generate_latest(registry(stats)).decode()))
    assert text == found(read_openmetrics(write_openmetrics(registry(stats)).decode()))
    assert any(("service", 'a"b\\c\nd') in labels for _, labels, _ in text)


async def test_no_caller_can_make_more_series() -> None:
    """Whatever names, paths, statuses and methods come, the labels are those of the configuration."""
    [port] = free_ports(1)
    async with backends("a") as [a]:
        listener = bootstraps.listener("main", port, "a")
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["route_config"]["virtual_hosts"][0]["domains"] = ["shop"]
        async with running(bootstraps.static([listener], [bootstraps.cluster("a", a.port)])) as proxy:
            client = await dial(port)
            chance = Random(2)

            async def wild(number: int) -> None:
                a.begin([["ended", {"only": [":status: 200", f"grpc-status: {chance.randrange(10**6)}"]}]])
                authority = "shop" if number % 2 else f"shop-{number}"
                fields = [
                    (":method", f"M{number}"),
                    (":scheme", "http"),
                    (":path", f"/shop.Orders{number}/Get?{number}"),
                    (":authority", authority),
                    ("content-type", "application/grpc"),
                    (f"x-{number}", str(number)),
                ]
                seen = client.open(fields, ended=False)
                client.data(seen, script.message("x"), ended=True)
                await over(client, seen)

            for number in range(20):
                await wild(number)
            before = set(samples(proxy.worker.stats))
            for number in range(20, 220):
                await wild(number)
            assert set(samples(proxy.worker.stats)) == before
            services = {dict(labels).get("service") for _, labels in before} - {None}
            assert services <= {"", "a"}
