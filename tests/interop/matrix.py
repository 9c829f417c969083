"""Every client against every server, and two sidecars between them."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.certificates import Authority
from tests.differential import engines
from tests.differential.engines import Engine
from tests.interop import python_peer
from tests.mesh import environment
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.tools import need, need_made
from tests.waiting import eventually

NAME: Final = "interop.test"
SERVERS: Final = ("go", "python", "node")
CLIENTS: Final = ("go", "python", "node")
WAYS: Final = ("plain", "tls", "opaque")
"""`tls`: on each of the three stretches, with certificates asked for between the sidecars. `opaque`: TLS from end to end, whose bytes the sidecars hand on."""
CASES: Final = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
)
GO_CASES: Final = ("rpc_soak", "channel_soak")
GO_TO_GO_CASES: Final = ("orca_per_rpc", "orca_oob")
"""Of grpc-go's server alone, so far."""
COMPRESSED_CASES: Final = ("compressed_unary", "compressed_streaming")
PATIENCE_S: Final = 60.0
_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_TCP: Final = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_BY_BACKEND_METRICS: Final = '{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}'


def cases_of(client: str, server: str) -> tuple[str, ...]:
    """What this client can ask of this server."""
    if client != "go":
        return CASES + COMPRESSED_CASES
    return CASES + GO_CASES + (GO_TO_GO_CASES if server == "go" else ())


def schema() -> Path:
    """The test service's descriptors."""
    return need_made("interop/schema.binpb")


@dataclass
class Papers:
    """Certificates of servers and sidecars, as files."""

    folder: Path
    root: Authority = field(default_factory=Authority)

    def __post_init__(self) -> None:
        self.authority = self.folder / "root.pem"
        self.authority.write_bytes(self.root.pem)
        self.chain, self.key = self.root.sign(dns=(NAME,)).write(self.folder, "server")

    def _common(self, *, trusts: bool, shows: bool = True) -> dict[str, Any]:
        shown = {"certificate_chain": {"filename": str(self.chain)}, "private_key": {"filename": str(self.key)}}
        names = [{"san_type": "DNS", "matcher": {"exact": NAME}}]
        trust = {"trusted_ca": {"filename": str(self.authority)}, "match_typed_subject_alt_names": names}
        return {
            **({"tls_certificates": [shown]} if shows else {}),
            **({"validation_context": trust} if trusts else {}),
        }

    def listening(self, *, asks: bool) -> dict[str, Any]:
        """Of a listener; `asks` for the client's certificate."""
        common = {**self._common(trusts=asks), "alpn_protocols": ["h2"]}
        config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": common}
        return {"transport_socket": {"name": "tls", "typed_config": {**config, "require_client_certificate": asks}}}

    def calling(self) -> dict[str, Any]:
        """Of a cluster."""
        config = {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": self._common(trusts=True), "sni": NAME}
        return {"transport_socket": {"name": "tls", "typed_config": config}}


@dataclass
class Programs:
    """Servers and sidecars of one way, at work."""

    way: str
    papers: Papers
    ports: dict[str, int]
    """Where clients reach a server, by its name: at the first sidecar."""
    admins: dict[str, int]
    """Of the two sidecars, `out` and `in`."""
    engines: list[Engine]
    _outcomes: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    @property
    def is_secure(self) -> bool:
        return self.way != "plain"

    def metric(self, sidecar: str, name: str, **labels: str) -> float:
        """The sum of a metric of a sidecar over the samples that have these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admins[sidecar]}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        mine = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rpartition(" ")[2]) for line in mine if all(each in line for each in wanted))

    def _outcomes_of(self, client: str, server: str) -> dict[str, str]:
        """What each case of a client came to: an empty string, or what failed. For clients that run all cases in one go."""
        words = ["--ca", str(self.papers.authority), "--name", NAME] if self.is_secure else []
        command = [*_node("client"), f"127.0.0.1:{self.ports[server]}", *words, *cases_of(client, server)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S * 4, env=_node_environment())
        said = [json.loads(line) for line in done.stdout.splitlines()]
        return {each["case"]: each["fault"] for each in said} | ({"": done.stderr} if done.returncode else {})

    def run(self, client: str, server: str, case: str) -> str:
        """Run a case; what failed, or an empty string."""
        port = self.ports[server]
        if client == "go":
            return run_go(port, case, self.papers.authority if self.is_secure else None)
        if client == "python":
            authority = self.papers.root.pem if self.is_secure else None
            return python_peer.run(schema(), f"127.0.0.1:{port}", authority, NAME, case)
        outcomes = self._outcomes.get((client, server))
        if outcomes is None:
            outcomes = self._outcomes[client, server] = self._outcomes_of(client, server)
        return outcomes.get(case, f"was not run: {outcomes.get('', '')}")


def run_go(port: int, case: str, authority: Path | None) -> str:
    """A case of grpc-go's own client."""
    words = ["--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}"]
    words += [f"--service_config_json={_BY_BACKEND_METRICS}", "--soak_per_iteration_max_acceptable_latency_ms=10000"]
    words += ["--soak_overall_timeout_seconds=30"]
    if authority is not None:
        words += ["--use_tls", f"--ca_file={authority}", f"--server_host_override={NAME}", "--use_test_ca"]
    command = [need("interop-go-client"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr}"


def _node(*words: str) -> list[str]:
    script = Path(__file__).parent / "node" / "interop.js"
    return [need("node"), str(script), str(schema()), *words]


def _node_environment() -> dict[str, str]:
    return environment(NODE_PATH=str(need_made("interop/node_modules")))


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[int]:
    """A server that prints its port; the port, as long as the context lasts."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=_node_environment())

    def port() -> int:
        assert process.poll() is None, log.read_text()
        found = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("port ")]
        return int(found[0]) if found else 0

    try:
        yield eventually(port, timeout_s=PATIENCE_S)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _server(server: str, papers: Papers, *, is_secure: bool) -> Any:
    """The context of a running server, which is its port."""
    if server == "python":
        return python_peer.serving(schema(), (papers.chain, papers.key) if is_secure else None)
    chain, key = str(papers.chain), str(papers.key)
    if server == "go":
        command = [need("interop-go-server"), *(["-tls_cert_file", chain, "-tls_key_file", key] if is_secure else [])]
    else:
        command = [*_node("server"), *([chain, key] if is_secure else [])]
    return _process(command, papers.folder / f"{server}.log")


def _tcp(name: str, port: int, cluster: str) -> dict[str, Any]:
    proxy = {"@type": _TCP, "stat_prefix": name, "cluster": cluster}
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    return {"name": name, "address": bootstraps.address(port), "filter_chains": [{"filters": filters}]}


def _sidecar(way: str, papers: Papers, admin: int, hops: dict[str, tuple[int, int]], *, is_inner: bool) -> Any:
    """A bootstrap with a listener for each server: from a port to a port."""
    listeners, clusters = [], []
    for name, (port, to) in hops.items():
        if way == "opaque":
            listeners.append(_tcp(name, port, name))
        else:
            listeners.append(bootstraps.listener(name, port, name))
        clusters.append(bootstraps.cluster(name, to))
        if way == "tls":
            listeners[-1]["filter_chains"][0].update(papers.listening(asks=is_inner))
            clusters[-1].update(papers.calling())
    return bootstraps.static(listeners, clusters, admin={"address": bootstraps.address(admin)})


@contextmanager
def running(way: str, folder: Path) -> Iterator[Programs]:
    """All servers, each behind two sidecars."""
    papers = Papers(folder)
    with ExitStack() as stack:
        count = len(SERVERS)
        servers = {name: stack.enter_context(_server(name, papers, is_secure=way != "plain")) for name in SERVERS}
        *ports, out_admin, in_admin = free_ports(2 * count + 2)
        entrances = dict(zip(SERVERS, ports[:count], strict=True))
        between = dict(zip(SERVERS, ports[count:], strict=True))
        inner = {name: (between[name], servers[name]) for name in SERVERS}
        outer = {name: (entrances[name], between[name]) for name in SERVERS}
        started = []
        for name, admin, hops in (("in", in_admin, inner), ("out", out_admin, outer)):
            (folder / name).mkdir()
            bootstrap = _sidecar(way, papers, admin, hops, is_inner=name == "in")
            started.append(
                engines.start("remora", bootstrap, [*(port for port, _ in hops.values()), admin], folder / name)
            )
            stack.callback(started[-1].stop)
        yield Programs(way, papers, entrances, {"in": in_admin, "out": out_admin}, started)
