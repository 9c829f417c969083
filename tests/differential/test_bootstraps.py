"""Bootstraps that both engines refuse: what Envoy would not start with, the sidecar does not start with either."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest

from tests.differential import engines
from tests.differential.engines import ENGINES
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.bootstraps import ABSENT, changed

MANAGER: Final = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
HOSTS: Final = f"{MANAGER}.route_config.virtual_hosts"
ROUTE: Final = f"{HOSTS}[0].routes[0]"
CLUSTER: Final = "static_resources.clusters[0]"
HOST: Final[dict[str, Any]] = {
    "name": "other",
    "domains": ["*"],
    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}],
}
LIMIT: Final = {
    "name": "limit",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit",
        "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "1s"},
    },
}


def limited(field: str, value: Any) -> list[Any]:
    made: Any = deepcopy(LIMIT)
    made["typed_config"]["token_bucket"][field] = value
    return [made, bootstraps.ROUTER]


REFUSED: Final[dict[str, tuple[str, Any]]] = {
    "a route to a cluster that is not there": (f"{ROUTE}.route.cluster", "nowhere"),
    "a domain in two virtual hosts": (HOSTS, [HOST, {**HOST, "name": "again"}]),
    "a virtual host without domains": (f"{HOSTS}[0].domains", []),
    "a route that leads nowhere": (f"{ROUTE}.route", {"timeout": "1s"}),
    "a match of nothing": (f"{ROUTE}.match", {}),
    "a broken regular expression": (f"{ROUTE}.match", {"safe_regex": {"regex": "[a"}}),
    "weights that add up to 0": (f"{ROUTE}.route", {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}),
    "a router before another filter": (f"{MANAGER}.http_filters", [bootstraps.ROUTER, LIMIT]),
    "no routes": (f"{MANAGER}.route_config", ABSENT),
    "a bucket that is never filled": (f"{MANAGER}.http_filters", limited("tokens_per_fill", 0)),
    "a bucket that is filled all the time": (f"{MANAGER}.http_filters", limited("fill_interval", "0.01s")),
    "a window below HTTP/2's first": (f"{MANAGER}.http2_protocol_options", {"initial_stream_window_size": 1000}),
    "no streams": (f"{MANAGER}.http2_protocol_options", {"max_concurrent_streams": 0}),
    "a name for a static address": (
        f"{CLUSTER}.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        "localhost",
    ),
    "a field that nobody knows": (f"{CLUSTER}.lb_polizy", "RANDOM"),
    "a number for a text": (f"{CLUSTER}.name", ["a"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_both_engines_refuse(tmp_path: Path, what: str) -> None:
    [port] = free_ports(1)
    path, value = REFUSED[what]
    document = bootstraps.static([bootstraps.listener("main", port, "a")], [bootstraps.cluster("a", 1)])
    bootstrap = changed(deepcopy(document), path, value)
    launched = [engines.launch(name, bootstrap, tmp_path) for name in ENGINES]
    assert {engine.name: engines.refuses(engine) for engine in launched} == {"envoy": True, "remora": True}


def test_what_they_are_made_of_is_taken(tmp_path: Path) -> None:
    """Or all of the above would be refused for another reason."""
    for name in ENGINES:
        [port] = free_ports(1)
        listener = bootstraps.listener("main", port, "a", http_filters=[LIMIT, bootstraps.ROUTER])
        (tmp_path / name).mkdir()
        bootstrap = bootstraps.static([listener], [bootstraps.cluster("a", 1)])
        engines.start(name, bootstrap, [port], tmp_path / name).stop()
