"""Filters in plain Python, found by their entry points, in a running sidecar: what they may do, and what they cannot do harm to."""

import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.filtering import Answer, Headers, offered
from sidecar.proxy.explain import explain
from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.metrics import StatsCollector
from sidecar.xds.bootstrap import parse
from sidecar.xds.supported import ConfigError
from tests.differential.backend import GRPC_OK, Backend
from tests.differential.wire import Wire
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import backends, call, dial, running
from tests.tools import ROOT

EXAMPLES = ROOT / "docs" / "examples" / "filters"
ROGUES = """
import time
from sidecar.filtering import Answer, Filter

class Raises(Filter):
    def __init__(self, config):
        self.where = config.get("where", "on_request")
    def on_request(self, request):
        if self.where == "on_request":
            request.headers.set("x-half", "done")
            raise RuntimeError("no such luck")
        if self.where == "exit":
            raise SystemExit(1)
        if self.where == "transport":
            request.headers.set("grpc-timeout", "1S")
        if self.where == "wrong":
            return "yes"
    def on_response(self, request, response):
        if self.where == "on_response":
            raise RuntimeError("no such luck")
    def on_end(self, request, status):
        if self.where == "on_end":
            raise RuntimeError("no such luck")

class Slow(Filter):
    calls = 0
    def on_request(self, request):
        Slow.calls += 1
        end = time.perf_counter() + 0.003
        while time.perf_counter() < end:
            pass

class NoFilter:
    pass
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples, and filters that misbehave, as installed packages."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    places = dict(project["entry-points"]["remora.filters"])
    places |= {"raises": "rogues:Raises", "slow": "rogues:Slow", "none": "rogues:NoFilter", "gone": "no_module:X"}
    (tmp_path / "rogues.py").write_text(ROGUES)
    about = tmp_path / "examples-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in places.items()]
    (about / "entry_points.txt").write_text("\n".join(["[remora.filters]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    offered.cache_clear()
    yield
    offered.cache_clear()
    for name in ("rogues", "example_filters"):
        sys.modules.pop(name, None)


def filtered(name: str, config: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    typed = {
        "@type": "type.googleapis.com/remora.mesh.v1.PythonFilter",
        "filter": name,
        "config": config or {},
        **fields,
    }
    return {"name": name, "typed_config": typed}


@asynccontextmanager
async def mesh(*filters: dict[str, Any]) -> AsyncIterator[tuple[Wire, Backend, Proxy]]:
    (port,) = free_ports(1)
    async with backends("a") as (a,):
        listener = bootstraps.listener("main", port, "a", http_filters=[*filters, bootstraps.ROUTER])
        async with running(bootstraps.static([listener], [bootstraps.cluster("a", a.port)])) as proxy:
            yield await dial(port), a, proxy


async def test_a_filter_changes_the_headers_of_requests_and_responses() -> None:
    async with mesh(filtered("stamp", {"name": "x-region", "value": "eu"})) as (client, a, proxy):
        for _ in range(3):  # the third is answered from the cache, whose plan no call may change
            seen = await call(client, "hello", "x-region: forged", "x-other: kept")
            assert (seen.header("grpc-status"), seen.header("x-region")) == ("0", "eu")
        for request in a.requests:
            assert (request.seen.header("x-region"), request.seen.header("x-other")) == ("eu", "kept")
        assert proxy.worker.stats.filters["stamp"].passed == 3


async def test_a_filter_answers_and_the_call_goes_no_further() -> None:
    async with mesh(filtered("block-agents", {"pattern": "curl"})) as (client, a, proxy):
        seen = await call(client, "hello", "user-agent: curl/8")
        assert (seen.header("grpc-status"), seen.header("grpc-message")) == (
            "7",
            'callers with "curl/8" are not let in',
        )
        assert (await call(client, "hello", "user-agent: grpc")).header("grpc-status") == "0"
        assert len(a.requests) == 1
        assert proxy.worker.stats.of_calls("main", "a", "").statuses[0] == 1
        stats = proxy.worker.stats.filters["block-agents"]
        assert (stats.answered, stats.passed) == (1, 1)


async def test_a_filter_hears_how_calls_end_whoever_ended_them() -> None:
    block = filtered("block-agents", {"pattern": "curl"})
    async with mesh(filtered("count-tenants"), block) as (client, a, proxy):
        a.answers = ["ok", {"only": [*GRPC_OK, "grpc-status: 14"]}]
        first = await call(client, "hello", "x-tenant: ann")
        assert first.header("x-tenant-calls") == "1"
        failed = await call(client, "hello", "x-tenant: ann")
        assert (failed.header("grpc-status"), failed.header("x-tenant-calls")) == ("14", "2")
        await call(client, "hello", "x-tenant: ann", "user-agent: curl")
        [(counting, _), *_] = explain_steps(proxy)
        assert (counting.calls, counting.failures) == ({"ann": 3}, {"ann": 2})


def explain_steps(proxy: Proxy) -> list[tuple[Any, Any]]:
    """The filters of the chain, and their steps."""
    from sidecar.proxy.route import Request

    chain = next(iter(proxy.listeners["main"].chains.values()))
    book = proxy.filters_of("main", chain)
    assert book is not None
    steps: list[Any] = [step for _, step in book.named(None, None, Request(b"POST", b"/", b"a", {}))]
    return [(step._owner.filter, step) for step in steps if step is not None]


@pytest.mark.parametrize("where", ["on_request", "on_response", "on_end", "exit", "transport", "wrong"])
async def test_what_a_filter_raises_leaves_calls_alone_where_it_fails_open(where: str) -> None:
    async with mesh(filtered("raises", {"where": where})) as (client, a, proxy):
        assert [(await call(client)).header("grpc-status") for _ in range(2)] == ["0", "0"]
        assert all(request.seen.header("x-half") is None for request in a.requests)
        assert proxy.worker.stats.filters["raises"].failed == 2


@pytest.mark.parametrize(("where", "reached"), [("on_request", 0), ("exit", 0), ("wrong", 0), ("on_response", 2)])
async def test_where_it_fails_closed_the_call_is_refused_and_says_by_what(where: str, reached: int) -> None:
    async with mesh(filtered("raises", {"where": where}, on_error="Closed")) as (client, a, proxy):
        for _ in range(2):
            seen = await call(client)
            assert seen.header("grpc-status") == "14"
            assert (seen.header("grpc-message") or "").startswith('filter "raises" ')
            assert (seen.header("grpc-message") or "").endswith("(flag PYF)")
            assert not seen.data
        assert len(a.requests) == reached
        assert proxy.worker.stats.of_calls("main", "a", "").statuses[0] == 0


@pytest.mark.parametrize(("on_error", "then"), [("Open", "0"), ("Closed", "14")])
async def test_a_filter_that_is_slow_again_and_again_is_switched_off(on_error: str, then: str) -> None:
    slow = filtered("slow", budget="0.001s", max_overruns=2, off="60s", on_error=on_error)
    async with mesh(slow) as (client, _, proxy):
        said = [(await call(client)).header("grpc-status") for _ in range(4)]
        assert said == ["0", "0", then, then]
        import rogues  # type: ignore[import-not-found]

        stats = proxy.worker.stats.filters["slow"]
        assert (rogues.Slow.calls, stats.overruns, stats.switched_off, stats.skipped) == (2, 2, 1, 2)
        assert stats.seconds >= 0.006
        [told] = explain(proxy, "a", "/x.Y/Z")["filters"]
        assert told["verdict"] == ("passes" if on_error == "Open" else "refuses")
        [(_, step)] = explain_steps(proxy)
        step._owner.off_until = proxy.worker.now  # its time is over: it is tried again
        assert (await call(client)).header("grpc-status") == "0"
        assert rogues.Slow.calls == 3
        metrics = {
            sample.name: sample.value
            for family in StatsCollector(proxy.worker.stats).collect()
            for sample in family.samples
            if sample.labels.get("filter") == "slow" and sample.labels.get("outcome") in (None, "skipped")
        }
        assert metrics["remora_filter_overruns_total"] == 3
        assert metrics["remora_filter_calls_total"] == 2
        assert metrics["remora_filter_switched_off_total"] == 1


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("nobody", {}, 'no installed package offers a filter "nobody" (entry points remora.filters: '),
        ("gone", {}, 'filter "gone" cannot be imported: ModuleNotFoundError: '),
        ("none", {}, 'filter "none" (rogues:NoFilter) is no subclass of sidecar.filtering.Filter'),
        ("stamp", {}, 'filter "stamp" does not take its configuration: ValueError: name is missing'),
    ],
)
def test_a_filter_that_cannot_be_is_refused_with_the_configuration(
    name: str, config: dict[str, Any], said: str
) -> None:
    listener = bootstraps.listener("main", 0, "a", http_filters=[filtered(name, config), bootstraps.ROUTER])
    with pytest.raises(ConfigError) as caught:
        parse(bootstraps.static([listener], [bootstraps.cluster("a", 1)]))
    assert said in str(caught.value) and str(caught.value).endswith("(RMR0150)")


def test_headers_are_found_in_any_case_and_those_of_the_transport_stay() -> None:
    headers = Headers([("X-A", "1"), ("x-a", "2")])
    assert (headers.get("X-a"), headers.all("x-A"), "X-A" in headers, len(headers)) == ("1", ["1", "2"], True, 2)
    headers.remove("x-b")
    assert not headers.is_changed
    headers.set("X-A", "3")
    assert (list(headers), headers.is_changed) == ([("x-a", "3")], True)
    for name, value in (
        (":path", "/"),
        ("te", "x"),
        ("grpc-status", "0"),
        ("x y", "1"),
        ("x", "a\nb"),
        ("x", "\u20ac"),
    ):
        with pytest.raises(ValueError, match=r"is no header|belongs to the transport"):
            headers.set(name, value)
    with pytest.raises(ValueError, match="17 is no gRPC status"):
        Answer(17)
    with pytest.raises(ValueError, match="is no header"):
        Answer(7, headers=(("x", "a\r\nb"),))
