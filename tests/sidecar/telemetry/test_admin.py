"""The admin endpoint, over a real socket."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.telemetry.admin import Admin, AdminError
from sidecar.telemetry.stats import Stats
from sidecar.xds.bootstrap import parse
from tests.ports import free_ports
from tests.sidecar.xds.everything import document, papers


@dataclass
class Served:
    """An admin endpoint and what it shows."""

    port: int
    is_ready: bool = False
    is_clean: bool = True
    drained: int = 0
    stats: Stats = field(default_factory=Stats)
    configuration: Any = None

    def drain(self) -> bool:
        self.drained += 1
        return self.is_clean

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Status, content type, body."""
        request = Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers)
        try:
            with urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers["content-type"], answer.read().decode()
        except HTTPError as error:
            return error.code, error.headers["content-type"], error.read().decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all, as it takes half a second to stop."""
    [port] = free_ports(1)
    made = Served(port, configuration=parse(document(tmp_path_factory.mktemp("admin"))).configuration)
    admin = Admin(made.stats, lambda: made.is_ready, lambda: made.configuration, made.drain)
    admin.start("127.0.0.1", port)
    yield made
    admin.stop()


def test_ready_says_so_once_it_is(served: Served) -> None:
    served.is_ready = False
    assert served.get("/ready")[0] == 503
    served.is_ready = True
    assert served.get("/ready") == (200, "text/plain", "LIVE\n")


@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus", "/metrics?filter=x"])
def test_metrics_are_there_under_envoys_name_too(served: Served, path: str) -> None:
    served.stats.of_calls("inbound", "orders", "").observe(0, "", 0.1)
    status, kind, body = served.get(path)
    names = {family.name for family in text_string_to_metric_families(body)}
    assert status == 200 and kind.startswith("text/plain; version=")
    assert {"remora_requests", "process_resident_memory_bytes", "python_info"} <= names


def test_openmetrics_is_given_to_who_asks(served: Served) -> None:
    _, kind, body = served.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_the_configuration_is_shown_without_its_secrets(served: Served) -> None:
    _, kind, body = served.get("/config_dump")
    dumped = json.loads(body)
    assert kind == "application/json"
    assert [listener["name"] for listener in dumped["listeners"]] == ["outbound", "mesh"]
    assert dumped["clusters"][0]["balancing"]["policy"] == "least_request"
    _, leaf = papers()
    secret = leaf.key.decode().splitlines()[1]
    assert secret not in body and "PRIVATE KEY" not in body
    assert "(secret)" in body


def test_draining_is_asked_for_by_post(served: Served) -> None:
    served.drained = 0
    assert served.get("/drain_listeners?graceful&inboundonly", "POST") == (200, "text/plain", "OK\n")
    served.is_clean = False
    assert served.get("/drain_listeners?inboundonly", "POST")[2] == "calls were still running\n"
    assert served.drained == 2
    assert served.get("/drain_listeners?inboundonly")[0] == 404
    assert served.get("/drain_listeners", "POST")[0] == 404
    assert served.drained == 2


def test_other_paths_say_what_there_is(served: Served) -> None:
    status, _, body = served.get("/help")
    assert status == 404 and "/config_dump" in body


def test_an_address_that_is_taken_is_said_in_one_line(served: Served) -> None:
    with pytest.raises(AdminError, match=f"cannot listen on 127.0.0.1:{served.port}: address already in use"):
        Admin(Stats(), lambda: True, lambda: None, lambda: True).start("127.0.0.1", served.port)
