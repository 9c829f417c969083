"""Random access rules and random requests, by callers with certificates and without: the same verdict as real Envoy's.

A policy stands on a route of its own, so that one pair of engines judges them all. The seed is printed with a failure; `REMORA_SEED`
runs it again.
"""

import asyncio
import os
import random
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.certificates import Authority
from tests.differential import engines
from tests.differential.cases import CaseFile
from tests.differential.engines import ENGINES
from tests.differential.lab import Rig
from tests.differential.wire import Fields, Wire

RBAC: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3."
PATIENCE_S: Final = 20.0
BATCH: Final = 100
TRUST: Final = "spiffe://shop.test/ns/"

Rule = dict[str, Any]
CALLERS: Final[dict[str, dict[str, tuple[str, ...]] | None]] = {
    "no certificate": None,
    "no names": {},
    "ann": {"uri": (f"{TRUST}shop/sa/ann",)},
    "bob": {"uri": (f"{TRUST}office/sa/bob",)},
    "two names": {"uri": (f"{TRUST}shop/sa/one", f"{TRUST}shop/sa/two")},
    "dns": {"dns": ("ann.shop.test", "*.office.test")},
    "both": {"uri": (f"{TRUST}shop/sa/both",), "dns": ("both.shop.test",)},
}
TEXTS: Final = (
    f"{TRUST}shop/sa/ann",
    f"{TRUST}shop/",
    "SPIFFE://SHOP.TEST/",
    "ann.shop.test",
    ".test",
    "/sa/bob",
    "*.office.test",
    "CN=leaf",
    "",
)
HEADERS: Final = ("x-user", "x-tier", ":method", ":authority", "x-forwarded-for")
VALUES: Final = (
    "ann",
    "Ann",
    "bob",
    "gold,silver",
    "7",
    "-3",
    "",
    "POST",
    "GET",
    "shop",
    "shop:81",
    "10.1.2.3",
    "10.1.2.3, 10.9.9.9",
)
PATHS: Final = (
    "/shop.Orders/Get",
    "/shop.Orders/Put",
    "/SHOP.orders/get",
    "/shop.Orders/Get?x=/y",
    "//shop",
    "/%2f",
    "/a/../b",
)


class Dice:
    """Makes rules and requests."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def one(self, *makers: Callable[[], Any]) -> Any:
        return self.chance.choice(makers)()

    def string(self, texts: tuple[str, ...]) -> Rule:
        text = self.chance.choice(texts)
        kind = self.chance.choice(["exact", "prefix", "suffix", "contains", "safe_regex"])
        if kind == "safe_regex":
            plain = "".join(letter if letter.isalnum() or letter in "/:- ," else f"\\{letter}" for letter in text)
            return {"safe_regex": {"regex": self.chance.choice([".*", plain or "x*", f"{plain}.*", f".*{plain}"])}}
        if not text and kind != "exact":
            text = "a"
        return {kind: text, "ignore_case": self.chance.random() < 0.3}

    def header(self) -> Rule:
        made: Rule = {"name": self.chance.choice(HEADERS), "invert_match": self.chance.random() < 0.3}
        kind = self.chance.random()
        if kind < 0.2:
            made["present_match"] = self.chance.random() < 0.5
        elif kind < 0.35:
            made["range_match"] = {"start": self.chance.randint(-5, 5), "end": self.chance.randint(6, 10)}
        else:
            made["string_match"] = self.string(VALUES)
        made["treat_missing_header_as_empty"] = self.chance.random() < 0.2
        return {"header": made}

    def path(self) -> Rule:
        return {"url_path": {"path": self.string(PATHS)}}

    def network(self) -> Rule:
        address, longest = self.chance.choice([("127.0.0.1", 32), ("127.8.0.0", 32), ("10.1.0.0", 32), ("::1", 128)])
        return {"address_prefix": address, "prefix_len": self.chance.choice([0, 8, 16, longest])}

    def permission(self, depth: int) -> Rule:
        leaves: list[Callable[[], Rule]] = [
            lambda: {"any": True},
            self.header,
            self.path,
            lambda: {"destination_ip": self.network()},
            # Each engine has a port of its own, above both of these or below.
            lambda: {"destination_port_range": {"start": 1, "end": self.chance.choice([2000, 65536])}},
            lambda: {"requested_server_name": self.string(("shop.test", "", "other.test"))},
            lambda: {"metadata": self.claim()},
        ]
        if depth:
            leaves += [
                lambda: {"and_rules": {"rules": self.many(self.permission, depth)}},
                lambda: {"or_rules": {"rules": self.many(self.permission, depth)}},
                lambda: {"not_rule": self.permission(depth - 1)},
            ] * 2
        return dict(self.one(*leaves))

    def principal(self, depth: int) -> Rule:
        leaves: list[Callable[[], Rule]] = [
            lambda: {"any": True},
            self.header,
            self.path,
            lambda: {"authenticated": {}},
            lambda: {"direct_remote_ip": self.network()},
            lambda: {"remote_ip": self.network()},
            lambda: {"metadata": self.claim()},
            *[lambda: {"authenticated": {"principal_name": self.string(TEXTS)}}] * 4,
        ]
        if depth:
            leaves += [
                lambda: {"and_ids": {"ids": self.many(self.principal, depth)}},
                lambda: {"or_ids": {"ids": self.many(self.principal, depth)}},
                lambda: {"not_id": self.principal(depth - 1)},
            ] * 2
        return dict(self.one(*leaves))

    def claim(self) -> Rule:
        value = self.one(
            lambda: {"string_match": self.string(VALUES)}, lambda: {"present_match": True}, lambda: {"bool_match": True}
        )
        return {"filter": "jwt", "path": [{"key": "sub"}], "value": value, "invert": self.chance.random() < 0.5}

    def many(self, make: Callable[[int], Rule], depth: int) -> list[Rule]:
        return [make(depth - 1) for _ in range(self.chance.randint(1, 3))]

    def rules(self) -> Rule:
        policies = {
            f"p{number}": {"permissions": self.many(self.permission, 3), "principals": self.many(self.principal, 3)}
            for number in range(self.chance.randint(0, 2))
        }
        return {"action": self.chance.choice(["ALLOW", "DENY"]), "policies": policies}

    def request(self, number: int) -> Fields:
        fields = [
            (":method", self.chance.choice(["POST", "GET"])),
            (":scheme", "https"),
            (":path", self.chance.choice(PATHS)),
            (":authority", self.chance.choice(["shop", "shop:81"])),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("x-route", str(number)),
        ]
        for name in ("x-user", "x-tier", "x-forwarded-for"):
            for _ in range(self.chance.choice([0, 0, 1, 1, 2])):
                fields.append((name, self.chance.choice(VALUES)))
        return fields


def _bootstrap(rules: list[Rule], root: Authority, server: Any, folder: Path) -> dict[str, Any]:
    (folder / "root.pem").write_bytes(root.pem)
    chain, key = server.write(folder, "server")
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-route", "string_match": {"exact": str(number)}}]},
            "route": {"cluster": "a"},
            "typed_per_filter_config": {"rbac": {"@type": RBAC + "RBACPerRoute", "rbac": {"rules": rule}}},
        }
        for number, rule in enumerate(rules)
    ]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "route_config": {"name": "main", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "rbac", "typed_config": {"@type": RBAC + "RBAC"}},
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [
                {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
            ],
            "validation_context": {"trusted_ca": {"filename": str(folder / "root.pem")}},
            "alpn_protocols": ["h2"],
        },
    }
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": f"type.googleapis.com/{options}", "explicit_http_config": {"http2_protocol_options": {}}}
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "${a}"}}}
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "main",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": "${main}"}},
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ],
                            "transport_socket": {"name": "tls", "typed_config": tls},
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "a",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {options: http2},
                    "load_assignment": {"cluster_name": "a", "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
                }
            ],
        }
    }


class _Client(Wire):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.hello()


async def _verdicts(port: int, context: ssl.SSLContext, requests: list[Fields]) -> list[str | None]:
    client = _Client(is_server=False)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: client, "127.0.0.1", port, ssl=context, server_hostname="shop.test")
    found: list[str | None] = []
    for start in range(0, len(requests), BATCH):
        seen = [client.open(fields, ended=True) for fields in requests[start : start + BATCH]]
        assert await client.until(lambda seen=seen: all(each.is_over for each in seen), PATIENCE_S)  # type: ignore[misc]
        found += [each.header("grpc-status") for each in seen]
    client.close()
    return found


def _context(root: Authority, names: dict[str, tuple[str, ...]] | None, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=root.pem.decode())
    context.set_alpn_protocols(["h2"])
    if names is not None:
        root.sign(uri=names.get("uri", ()), dns=names.get("dns", ())).load(context, folder)
    return context


def _compare(seed: int, policies: int, requests: int) -> None:
    dice = Dice(seed)
    rules = [dice.rules() for _ in range(policies)]
    asked = {caller: [dice.request(dice.chance.randrange(policies)) for _ in range(requests)] for caller in CALLERS}
    root = Authority()
    with tempfile.TemporaryDirectory(prefix="access-") as name, asyncio.Runner() as runner:
        folder = Path(name)
        bootstrap = _bootstrap(rules, root, root.sign(dns=("shop.test",)), folder)
        file = CaseFile("access", "", bootstrap, (("a", ()),), ())
        rigs = {engine: Rig(engine, file, folder / engine) for engine in ENGINES}
        try:
            for rig in rigs.values():
                runner.run(rig.open())
            for rig in rigs.values():
                assert rig.engine is not None
                engines.wait_ready(rig.engine, rig.listeners)
            verdicts: set[str | None] = set()
            for caller, names in CALLERS.items():
                context = _context(root, names, folder)
                said = {
                    engine: runner.run(_verdicts(rig.ports["main"], context, asked[caller]))
                    for engine, rig in rigs.items()
                }
                verdicts.update(said["envoy"])
                for fields, *each in zip(asked[caller], *said.values(), strict=True):
                    policy = rules[int(dict(fields)["x-route"])]
                    assert each[0] == each[1], (
                        f"seed {seed}: {caller} {fields}: {dict(zip(said, each, strict=True))}\n{policy}"
                    )
            assert verdicts == {"0", "7"}, f"seed {seed}: the rules decide nothing"
        finally:
            for rig in rigs.values():
                rig.close()


def _seed() -> int:
    return int(os.environ.get("REMORA_SEED") or random.SystemRandom().randrange(2**32))


def test_random_rules_judge_random_requests_as_envoy_does() -> None:
    _compare(_seed(), policies=60, requests=150)


@pytest.mark.slow
def test_ten_thousand_requests_are_judged_as_envoy_does() -> None:
    _compare(_seed(), policies=500, requests=1500)
