"""TLS on listeners and to clusters: who is let in, who is called, as real Envoy decides it with the same bootstrap."""

import asyncio
import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.certificates import HOUR, Authority, Leaf
from tests.differential import engines
from tests.differential.cases import CaseFile
from tests.differential.engines import ENGINES
from tests.differential.lab import Rig
from tests.differential.wire import Wire

PATIENCE_S: Final = 5.0
NO_LINGER: Final = struct.pack("ii", 1, 0)
TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
HCM: Final = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ANN: Final = "spiffe://shop.test/ns/default/sa/ann"


@dataclass
class Papers:
    """Everybody's certificates."""

    folder: Path
    root: Authority = field(default_factory=Authority)
    stranger: Authority = field(default_factory=lambda: Authority("another root"))

    def __post_init__(self) -> None:
        below = Authority("below", self.root)
        day = timedelta(days=1)
        self.leaves: dict[str, Leaf] = {
            "server": self.root.sign(dns=("shop.test", "*.shop.test"), ip=("127.0.0.1",)),
            "other": self.root.sign(dns=("other.test",)),
            "ann": self.root.sign(uri=(ANN,)),
            "bob": self.root.sign(uri=("spiffe://shop.test/ns/default/sa/bob",)),
            "nobody": self.root.sign(),
            "below": below.sign(uri=(ANN,), dns=("shop.test",)),
            "stranger": self.stranger.sign(uri=(ANN,), dns=("shop.test",)),
            "expired": self.root.sign(uri=(ANN,), dns=("shop.test",), start=-day, end=-HOUR),
            "early": self.root.sign(uri=(ANN,), dns=("shop.test",), start=HOUR, end=day),
            "server only": self.root.sign(uri=(ANN,), uses=(_oid("1.3.6.1.5.5.7.3.1"),)),
            "client only": self.root.sign(dns=("shop.test",), uses=(_oid("1.3.6.1.5.5.7.3.2"),)),
        }
        (self.folder / "root.pem").write_bytes(self.root.pem)

    def server(self, name: str, *, asks: bool = False) -> ssl.SSLContext:
        """What a backend shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.leaves[name].load(context, self.folder)
        context.set_alpn_protocols(["h2"])
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.root.pem.decode())
        return context

    def client(self, name: str | None, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
        """What a client shows; it takes only our root's servers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.root.pem.decode())
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if name is not None:
            self.leaves[name].load(context, self.folder)
        return context


def _oid(dotted: str) -> Any:
    from cryptography.x509 import ObjectIdentifier

    return ObjectIdentifier(dotted)


def _certificate(papers: Papers, name: str) -> dict[str, Any]:
    leaf = papers.leaves[name]
    chain, _ = leaf.write(papers.folder, name.replace(" ", "-"))
    return {"certificate_chain": {"filename": str(chain)}, "private_key": {"inline_string": leaf.key.decode()}}


def _trusts(papers: Papers, *sans: dict[str, Any]) -> dict[str, Any]:
    return {"trusted_ca": {"filename": str(papers.folder / "root.pem")}, "match_typed_subject_alt_names": list(sans)}


def _downstream(common: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "name": "tls",
        "typed_config": {"@type": TLS + "DownstreamTlsContext", "common_tls_context": common, **fields},
    }


def _upstream(common: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "name": "tls",
        "typed_config": {"@type": TLS + "UpstreamTlsContext", "common_tls_context": common, **fields},
    }


def _http(prefix: str, routes: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "name": "http",
        "typed_config": {
            "@type": HCM,
            "stat_prefix": prefix,
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": path}, "route": {"cluster": name}} for path, name in routes],
                    }
                ]
            },
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    },
                }
            ],
        },
    }


def _listener(name: str, chains: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": f"${{{name}}}"}}
    return {"name": name, "address": address, "filter_chains": chains, **fields}


def _cluster(name: str, backend: str, socket: dict[str, Any] | None) -> dict[str, Any]:
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": f"${{{backend}}}"}}}
    found = {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            OPTIONS: {
                "@type": f"type.googleapis.com/{OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }
    return found if socket is None else {**found, "transport_socket": socket}


URI_ANN: Final = {"san_type": "URI", "matcher": {"exact": ANN}}
DNS_SHOP: Final = {"san_type": "DNS", "matcher": {"exact": "shop.test"}}
DNS_DEEP: Final = {"san_type": "DNS", "matcher": {"exact": "a.shop.test"}}
ADDRESS: Final = {"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}}
PREFIX: Final = {"san_type": "URI", "matcher": {"prefix": "spiffe://shop.test/"}}

BACKENDS: Final = {
    "good": "server",
    "other": "other",
    "stranger": "stranger",
    "expired": "expired",
    "early": "early",
    "below": "below",
    "nobody": "nobody",
    "client_only": "client only",
}


def _bootstrap(papers: Papers) -> dict[str, Any]:
    show = {"tls_certificates": [_certificate(papers, "server")], "alpn_protocols": ["h2", "http/1.1"]}
    only_ann = {**show, "validation_context": _trusts(papers, URI_ANN)}
    plain = [("/", "plain")]
    ways: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        **{name: (name, {"validation_context": _trusts(papers, DNS_SHOP)}, {}) for name in BACKENDS},
        "deep": ("good", {"validation_context": _trusts(papers, DNS_DEEP)}, {}),
        "address": ("good", {"validation_context": _trusts(papers, ADDRESS)}, {}),
        "anybody": ("stranger", {}, {}),
        "asks": (
            "asks",
            {"validation_context": _trusts(papers, DNS_SHOP), "tls_certificates": [_certificate(papers, "ann")]},
            {"sni": "asks.shop.test"},
        ),
        "asks_nothing_shown": ("asks", {"validation_context": _trusts(papers, DNS_SHOP)}, {}),
        "to_plain": ("plain", {"validation_context": _trusts(papers, DNS_SHOP)}, {}),
    }
    return {
        "static_resources": {
            "listeners": [
                _listener("open", [{"filters": [_http("open", [(f"/{name}/", name) for name in ways])]}]),
                _listener(
                    "strict",
                    [
                        {
                            "filters": [_http("strict", plain)],
                            "transport_socket": _downstream(only_ann, require_client_certificate=True),
                        }
                    ],
                ),
                _listener(
                    "modern",
                    [
                        {
                            "filters": [_http("modern", plain)],
                            "transport_socket": _downstream(
                                {**show, "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}}
                            ),
                        }
                    ],
                ),
                _listener(
                    "optional",
                    [
                        {
                            "filters": [_http("optional", plain)],
                            "transport_socket": _downstream({**show, "validation_context": _trusts(papers)}),
                        }
                    ],
                ),
                _listener(
                    "named",
                    [
                        {
                            "filters": [_http("named", plain)],
                            "transport_socket": _downstream({**show, "validation_context": _trusts(papers, PREFIX)}),
                        }
                    ],
                ),
                _listener(
                    "both",
                    [
                        {
                            "filter_chain_match": {"transport_protocol": "tls", "server_names": ["*.shop.test"]},
                            "filters": [_http("both_tls", plain)],
                            "transport_socket": _downstream(show),
                        },
                        {
                            "filter_chain_match": {"transport_protocol": "raw_buffer"},
                            "filters": [_http("both_raw", plain)],
                        },
                    ],
                    listener_filters=[
                        {
                            "name": "tls_inspector",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
                            },
                        }
                    ],
                ),
            ],
            "clusters": [
                _cluster("plain", "plain", None),
                *(_cluster(name, backend, _upstream(common, **more)) for name, (backend, common, more) in ways.items()),
            ],
        }
    }


class Lab:
    """Both engines, each with backends of its own that show their certificates."""

    def __init__(self, folder: Path) -> None:
        self.papers = Papers(folder)
        backends = (*BACKENDS, "asks", "plain")
        file = CaseFile("tls", "", _bootstrap(self.papers), tuple((name, ()) for name in backends), ())
        self.runner = asyncio.Runner()
        self.rigs = {name: Rig(name, file, folder / name) for name in ENGINES}
        for rig in self.rigs.values():
            for name, shown in BACKENDS.items():
                rig.backends[name].tls = self.papers.server(shown)
            rig.backends["asks"].tls = self.papers.server("server", asks=True)
            self.runner.run(rig.open())
        for rig in self.rigs.values():
            assert rig.engine is not None
            engines.wait_ready(rig.engine, rig.listeners)

    def close(self) -> None:
        for rig in self.rigs.values():
            rig.close()
        self.runner.close()

    def both(self, listener: str, path: str, context: ssl.SSLContext | None, sni: str = "") -> dict[str, str]:
        """One call on each engine: what came of it."""

        async def run() -> dict[str, str]:
            return {name: await call(rig.ports[listener], path, context, sni) for name, rig in self.rigs.items()}

        return self.runner.run(run())


class Client(Wire):
    """Speaks first: over TLS the server's SETTINGS may be there before `create_connection` returns."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.hello()


async def call(port: int, path: str, context: ssl.SSLContext | None, sni: str = "") -> str:
    """`answered N` with the gRPC status, or `no way in`."""
    conn = Client(is_server=False)
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(
            lambda: conn, "127.0.0.1", port, ssl=context, server_hostname=sni if context is not None else None
        )
    except OSError:
        return "no way in"
    fields = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "shop")]
    seen = conn.open([*fields, ("content-type", "application/grpc"), ("te", "trailers")], ended=True)
    if not await conn.until(lambda: seen.is_over or conn.is_closed, PATIENCE_S):
        conn.close()
        return "neither answered nor closed"
    conn.close()
    return "no way in" if seen.headers is None else f"answered {seen.header('grpc-status')}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="tls-") as folder:
        lab = Lab(Path(folder))
        yield lab
        lab.close()


def both(outcome: str) -> dict[str, str]:
    return dict.fromkeys(ENGINES, outcome)


@pytest.mark.parametrize(
    ("shown", "outcome"),
    [
        ("ann", "answered 0"),
        ("below", "answered 0"),
        ("bob", "no way in"),
        ("nobody", "no way in"),
        ("stranger", "no way in"),
        ("expired", "no way in"),
        ("early", "no way in"),
        ("server only", "no way in"),
        (None, "no way in"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_clients_with_the_right_certificate_get_in(
    lab: Lab, shown: str | None, outcome: str, version: ssl.TLSVersion
) -> None:
    context = lab.papers.client(shown)
    context.maximum_version = version
    assert lab.both("strict", "/a", context) == both(outcome)


@pytest.mark.parametrize("shown", ["ann", "bob", None])
def test_where_none_is_asked_for_a_client_may_show_a_good_one(lab: Lab, shown: str | None) -> None:
    assert lab.both("optional", "/a", lab.papers.client(shown)) == both("answered 0")


@pytest.mark.parametrize(
    ("shown", "outcome"), [("ann", "answered 0"), ("bob", "answered 0"), ("nobody", "no way in"), (None, "no way in")]
)
def test_where_names_are_asked_for_a_certificate_must_be_shown(lab: Lab, shown: str | None, outcome: str) -> None:
    assert lab.both("named", "/a", lab.papers.client(shown)) == both(outcome)


@pytest.mark.parametrize("shown", ["stranger", "expired"])
def test_where_none_is_asked_for_a_bad_one_is_still_refused(lab: Lab, shown: str) -> None:
    assert lab.both("optional", "/a", lab.papers.client(shown)) == both("no way in")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_not_spoken(lab: Lab) -> None:
    context = lab.papers.client("ann")
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert lab.both("optional", "/a", context) == both("no way in")
    newer = lab.papers.client("ann")
    newer.maximum_version = ssl.TLSVersion.TLSv1_2
    assert lab.both("modern", "/a", newer) == both("no way in")
    assert lab.both("modern", "/a", lab.papers.client("ann")) == both("answered 0")


def test_plain_text_does_not_get_into_a_tls_listener(lab: Lab) -> None:
    assert lab.both("strict", "/a", None) == both("no way in")


@pytest.mark.parametrize("listener", ["strict", "both"])
@pytest.mark.parametrize("is_reset", [True, False])
def test_a_client_that_hangs_up_within_its_handshake_is_no_news(lab: Lab, listener: str, is_reset: bool) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        lab.papers.client(None).wrap_bio(incoming, outgoing, server_hostname="a.shop.test").do_handshake()
    hello = outgoing.read()
    rig = lab.rigs["remora"]
    for size in (10, len(hello) - 1, len(hello)):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", rig.ports[listener])) as sock:
                sock.sendall(hello[:size])
                if is_reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    assert lab.both("optional", "/a", lab.papers.client("ann")) == both("answered 0")
    assert rig.engine is not None
    assert rig.engine.log.read_text() == ""


def test_one_port_takes_tls_and_plain_text_where_it_says_so(lab: Lab) -> None:
    assert lab.both("both", "/a", None) == both("answered 0")
    assert lab.both("both", "/a", lab.papers.client(None), "a.shop.test") == both("answered 0")
    assert lab.both("both", "/a", lab.papers.client(None), "b.a.shop.test") == both("answered 0")
    assert lab.both("both", "/a", lab.papers.client(None), "shop.test") == both("no way in")
    assert lab.both("both", "/a", lab.papers.client(None)) == both("no way in")


@pytest.mark.parametrize("alpn", [("h2",), (), ("spdy",)])
def test_http2_is_spoken_whatever_the_client_offered(lab: Lab, alpn: tuple[str, ...]) -> None:
    assert lab.both("modern", "/a", lab.papers.client(None, alpn)) == both("answered 0")


@pytest.mark.parametrize(
    ("cluster", "outcome"),
    [
        ("good", "answered 0"),
        ("below", "answered 0"),
        ("deep", "answered 0"),
        ("address", "answered 0"),
        ("anybody", "answered 0"),
        ("asks", "answered 0"),
        ("other", "answered 14"),
        ("stranger", "answered 14"),
        ("expired", "answered 14"),
        ("early", "answered 14"),
        ("nobody", "answered 14"),
        ("client_only", "answered 14"),
        ("asks_nothing_shown", "answered 14"),
        ("to_plain", "answered 14"),
    ],
)
def test_only_endpoints_with_the_right_certificate_are_called(lab: Lab, cluster: str, outcome: str) -> None:
    assert lab.both("open", f"/{cluster}/Get", None) == both(outcome)


def test_a_hello_that_comes_in_pieces_is_understood(lab: Lab) -> None:
    """The client's first bytes one by one: what the inspector read is given to TLS whole."""

    async def run(port: int) -> str:
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = lab.papers.client(None).wrap_bio(incoming, outgoing, server_hostname="a.shop.test")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        for byte in outgoing.read():
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        try:
            while True:
                incoming.write(await asyncio.wait_for(reader.read(65_536), PATIENCE_S))
                try:
                    tls.do_handshake()
                    return str(tls.selected_alpn_protocol())
                except ssl.SSLWantReadError:
                    continue
        finally:
            writer.close()
            assert loop.is_running()

    assert {name: lab.runner.run(run(rig.ports["both"])) for name, rig in lab.rigs.items()} == both("h2")
