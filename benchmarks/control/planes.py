"""The control planes that are measured, and how a change is made to each."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from benchmarks.control import frames, mesh
from benchmarks.control.dataplane import ENDPOINTS, ROUTES, Shared, StateOfTheWorld, node
from benchmarks.control.mesh import Arrive, Change, Leave, Reroute
from benchmarks.processes import ROOT, BenchError, Process, Processes, free_port
from proto.mesh.v1 import api_pb2, api_pb2_grpc

GOPLANE_SOURCE: Final = ROOT / "benchmarks" / "control" / "goplane"
GOPLANE: Final = ROOT / ".tools" / "bin" / "goplane"
OUTBOUND: Final = "outbound"
"""The routes to all services."""
CALL_TIMEOUT_S: Final = 120.0
RECORD_TIMEOUT_S: Final = 120.0
QUIET_S: Final = 0.3
TTL_S: Final = 3600
"""Of a lease: longer than any run."""

Begin = Callable[[], Callable[[], None]]
"""Makes a change, without waiting; what it returns waits until the control plane has taken it."""


class Plane(Protocol):
    """A control plane that runs, with a mesh in it."""

    port: int
    """Of ADS."""
    process: Process

    def prepare(self, change: Change) -> Begin:
        """A change, ready to be made: what could be done before is done."""

    def close(self) -> None:
        """End the connection to it, and the program."""


class Remora:
    """`remora up` on an embedded store; changes go through its API."""

    def __init__(self, processes: Processes, services: int) -> None:
        store = processes.scratch / f"store-{time.monotonic_ns()}"
        asyncio.run(mesh.seed(store, services))
        self.port = free_port()
        words = [sys.executable, "-m", "remora", "up", "--listen", f"127.0.0.1:{self.port}"]
        self.process = processes.start([*words, "--store", str(store), "--http", f"127.0.0.1:{free_port()}"])
        self._processes = processes
        self.process.await_port(self.port)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.enable_http_proxy", 0)])
        self._registry: Any = api_pb2_grpc.RegistryStub(self._channel)
        self._resources: Any = api_pb2_grpc.ResourcesStub(self._channel)

    def prepare(self, change: Change) -> Begin:
        match change:
            case Arrive(service, name, version):
                register = api_pb2.RegisterRequest(instance=mesh.instance(service, name, version))
                register.ttl.FromSeconds(TTL_S)
                return lambda: self._call(self._registry.Register, register)
            case Leave(service, name):
                key = api_pb2.InstanceKey(service=service, namespace=mesh.NAMESPACE, id=name)
                return lambda: self._call(self._registry.Deregister, api_pb2.DeregisterRequest(instance=key))
            case Reroute():
                apply = api_pb2.ApplyRequest(resources=[mesh.route(change)])
                return lambda: self._call(self._resources.Apply, apply)

    def _call(self, method: Any, request: Any) -> Callable[[], None]:
        future = method.future(request, timeout=CALL_TIMEOUT_S)

        def wait() -> None:
            try:
                future.result()
            except grpc.RpcError as error:
                raise BenchError(f"a change was not taken: {future.code().name}: {future.details()}") from error

        return wait

    def close(self) -> None:
        """End the connection to it, and the program."""
        self._channel.close()
        self._processes.stop([self.process])


class GoControlPlane:
    """`goplane`: go-control-plane's snapshot cache, with the same resources as Remora sends, and changes of the same size."""

    def __init__(self, processes: Processes, resources: dict[tuple[str, str], bytes]) -> None:
        self.port, knob = free_port(), free_port()
        words = [str(GOPLANE), "-ads", f"127.0.0.1:{self.port}", "-knob", f"127.0.0.1:{knob}"]
        self._processes = processes
        self.process = processes.start(words)
        self.process.await_port(self.port)
        self.process.await_port(knob)
        self._knob = Knob(knob)
        self._resources = dict(resources)
        self._knob.post(_response([(url, data) for (url, _), data in resources.items()]))()

    def prepare(self, change: Change) -> Begin:
        match change:
            case Arrive() | Leave():
                key = (ENDPOINTS, f"outbound|{change.service}.{mesh.NAMESPACE}")
                self._resources[key] = _with_instance(self._resources[key], change)
            case Reroute():
                key = (ROUTES, OUTBOUND)
                self._resources[key] = _with_match(self._resources[key], change)
        body = _response([(key[0], self._resources[key])])
        return lambda: self._knob.post(body)

    def close(self) -> None:
        """End the connection to it, and the program."""
        self._knob.close()
        self._processes.stop([self.process])


def _response(resources: Sequence[tuple[str, bytes]]) -> bytes:
    message = discovery_pb2.DiscoveryResponse()
    for url, data in resources:
        message.resources.add(type_url=url, value=data)
    body: bytes = message.SerializeToString()
    return body


def _with_instance(data: bytes, change: Arrive | Leave) -> bytes:
    """A ClusterLoadAssignment after an instance came, changed or went; all are in one locality and weigh 1."""
    assignment = endpoint_pb2.ClusterLoadAssignment.FromString(data)
    [group] = assignment.endpoints
    labels = [item.metadata.filter_metadata["envoy.lb"].fields for item in group.lb_endpoints]
    there = [number for number, fields in enumerate(labels) if fields["instance"].string_value == change.instance]
    if isinstance(change, Leave):
        for number in reversed(there):
            del group.lb_endpoints[number]
    else:
        if there:
            item = group.lb_endpoints[there[0]]
        else:
            item = group.lb_endpoints.add()
            item.CopyFrom(group.lb_endpoints[0])
        fields = item.metadata.filter_metadata["envoy.lb"].fields
        fields["instance"].string_value = change.instance
        fields["version"].string_value = change.version
        address = mesh.instance(change.service, change.instance, change.version)
        item.endpoint.address.socket_address.port_value = address.port
    group.load_balancing_weight.value = len(group.lb_endpoints)
    fresh: bytes = assignment.SerializeToString(deterministic=True)
    return fresh


def _with_match(data: bytes, change: Reroute) -> bytes:
    """A RouteConfiguration in which a service's first route has another match."""
    configuration = route_pb2.RouteConfiguration.FromString(data)
    wanted = f"{change.service}.{mesh.NAMESPACE}"
    [host] = [host for host in configuration.virtual_hosts if host.name == wanted]
    header = route_components_pb2.HeaderMatcher(name="x-version")
    header.string_match.exact = change.header
    del host.routes[0].match.headers[:]
    host.routes[0].match.headers.append(header)
    fresh: bytes = configuration.SerializeToString(deterministic=True)
    return fresh


class Knob:
    """HTTP/1.1 to `goplane`, pipelined: a request goes out before the last one was answered, and in order."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")
        self._read = 0
        self._sent = 0
        self._faults: dict[int, str] = {}
        # One thread, so that a change is sent when it is due although `goplane` may not take the last one off the wire yet.
        self._writer = ThreadPoolExecutor(1, "knob")

    def post(self, body: bytes) -> Callable[[], None]:
        """Send resources; what it returns waits for the answer. Raises BenchError there if it is no."""
        head = f"POST /resources HTTP/1.1\r\nhost: goplane\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.submit(self._socket.sendall, head.encode() + body)
        number = self._sent
        self._sent += 1

        def wait() -> None:
            while self._read <= number:
                self._faults[self._read] = self._answer()
                self._read += 1
            fault = self._faults.pop(number)
            if fault:
                raise BenchError(f"goplane: {fault}")

        return wait

    def _answer(self) -> str:
        """The next answer: nothing if it is 200, else what it says."""
        status = self._answers.readline().decode()
        length = 0
        while line := self._answers.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        text = self._answers.read(length).decode(errors="replace").strip()
        return "" if " 200 " in status else f"{status.strip()} {text}"

    def close(self) -> None:
        """End the connection."""
        self._writer.shutdown()
        self._answers.close()
        self._socket.close()


def build_goplane() -> str:
    """Build the Go program if its source is newer; why it cannot be had, or nothing."""
    sources = [path for path in GOPLANE_SOURCE.iterdir() if path.suffix in (".go", ".mod", ".sum")]
    newest = max(path.stat().st_mtime for path in sources)
    if GOPLANE.exists() and GOPLANE.stat().st_mtime >= newest:
        return ""
    if shutil.which("go") is None:
        return "no Go is installed to build it"
    GOPLANE.parent.mkdir(parents=True, exist_ok=True)
    words = ["go", "build", "-o", str(GOPLANE), "."]
    done = subprocess.run(words, cwd=GOPLANE_SOURCE, capture_output=True, text=True, check=False)
    return f"it could not be built: {done.stderr.strip().splitlines()[-1:]}" if done.returncode else ""


async def record(port: int) -> dict[tuple[str, str], bytes]:
    """Connect as one node; all resources that it is sent, by type and name."""
    shared = Shared(kept={})
    failures: list[Exception] = []
    plane = StateOfTheWorld(0, node(0, "recorder"), shared)
    last = time.monotonic()

    def on_message(data: bytes) -> None:
        nonlocal last
        last = time.monotonic()
        for request in plane.on_response(data, last):
            connection.send(stream, request)

    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: frames.Connection(StateOfTheWorld.METHOD, failures.append), "127.0.0.1", port
    )
    stream = connection.open(on_message)
    for request in plane.start():
        connection.send(stream, request)
    async with asyncio.timeout(RECORD_TIMEOUT_S):
        with contextlib.closing(connection):
            while not plane.is_synced or time.monotonic() - last < QUIET_S:
                if failures:
                    raise failures[0]
                await asyncio.sleep(0.01)
    assert shared.kept is not None
    return shared.kept


def go_version(binary: Path = GOPLANE) -> str:
    """The version of go-control-plane in the program."""
    done = subprocess.run(["go", "version", "-m", str(binary)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:2] == ["dep", "github.com/envoyproxy/go-control-plane"]:
            return words[2].removeprefix("v")
    return ""
