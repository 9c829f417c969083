"""A mesh with two replicas of the control plane on a real etcd of three members, under traffic, of which a history is kept.

    with replicated(directory) as mesh, under_traffic(mesh) as traffic:
        mesh.etcd.leader().kill()
        traffic.goes_on()

When the traffic ends it is checked: no call has failed, what was written and read is linearizable for each key, no acknowledged write
is lost, and every node and replica has come to the same state.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import grpc

from control_plane.registry import keys, state
from control_plane.store.contract import StoreError
from control_plane.store.etcd import EtcdStore
from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from tests.etcd import EtcdCluster, etcd_cluster
from tests.linearizable import Operation, check
from tests.mesh import NO_PROXY, Load, Mesh, Process, load
from tests.relay import Relay, relay_to
from tests.waiting import eventually

T = TypeVar("T")
NAMESPACE: Final = "history"
KEYS: Final = ("one", "two")
PAUSE_S: Final = 0.03
CALL_S: Final = 8.0
"""Longer than the control plane waits for etcd, so that it is the one that says what became of a write."""
ENGINES: Final = ("remora", "envoy")


class Background:
    """An event loop in a thread, for what is asyncio's in tests that are not."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Link:
    """The network between a replica and etcd, which can be cut."""

    def __init__(self, background: Background, cluster: EtcdCluster) -> None:
        self._background = background
        self._contexts = [relay_to("127.0.0.1", member.client_port) for member in cluster.members]
        self._relays: list[Relay] = [background.do(context.__aenter__()) for context in self._contexts]

    @property
    def target(self) -> str:
        return "etcd://" + ",".join(f"127.0.0.1:{relay.port}" for relay in self._relays)

    def cut(self) -> None:
        """From now on bytes vanish, both ways; connections stay and new ones are taken."""
        for relay in self._relays:
            relay.loses_requests = relay.loses_answers = True

    def heal(self) -> None:
        """Bytes pass again; connections that lost some are ended."""

        async def end() -> None:
            for relay in self._relays:
                relay.loses_requests = relay.loses_answers = False
                relay.cut()

        self._background.do(end())

    def close(self) -> None:
        for context in self._contexts:
            self._background.do(context.__aexit__(None, None, None))


class Replicated(Mesh):
    """See the module. The second replica reaches etcd over `link`."""

    def __init__(self, directory: Path, etcd: EtcdCluster, background: Background, env: dict[str, str]) -> None:
        super().__init__(directory, etcd.target)
        self._env = env
        self.etcd = etcd
        self.background = background
        self.link = Link(background, etcd)
        self._targets = [etcd.target, self.link.target]
        self.replicas: list[Process] = []
        self.addresses: list[str] = []
        self.https: list[str] = []
        self.store: Any = background.do(EtcdStore.open(etcd.target))
        self.channels: list[grpc.Channel] = []

    def start(self) -> None:
        """Start the replicas that do not run, each where it was."""
        for number, target in enumerate(self._targets):
            if number < len(self.replicas) and self.replicas[number].is_running:
                continue
            is_first = number == len(self.replicas)
            where = "127.0.0.1:0" if is_first else self.addresses[number]
            http = "127.0.0.1:0" if is_first else self.https[number]
            words = ("up", "--listen", where, "--http", http, "--store", target)
            process = self.spawn(*words, name=f"up-{number}", env=self.environment(**self._env))
            said = process.until(r"API on (\S+), /metrics and /healthz on (\S+), store")
            if is_first:
                self.replicas.append(process)
                self.addresses.append(said[1])
                self.https.append(said[2])
                self.channels.append(
                    grpc.insecure_channel(said[1], options=[*NO_PROXY, ("grpc.max_reconnect_backoff_ms", 500)])
                )
            else:
                self.replicas[number] = process
        self.plane = self.replicas[0]
        self.server = ",".join(self.addresses)

    def stub(self, number: int, kind: Any) -> Any:
        """Of one replica."""
        return kind(self.channels[number])

    def instances(
        self, service: str = "echo", namespace: str = "default", replica: int = 0
    ) -> list[service_pb2.Instance]:
        asked = api_pb2.ListInstancesRequest(service=service, namespace=namespace)
        stub = self.stub(replica, api_pb2_grpc.RegistryStub)
        return list(stub.ListInstances(asked, timeout=5, wait_for_ready=True).instances)

    def nodes_at(self, number: int) -> api_pb2.NodesResponse:
        answer: api_pb2.NodesResponse = self.stub(number, api_pb2_grpc.MeshStub).Nodes(
            api_pb2.NodesRequest(), timeout=5
        )
        return answer

    def close(self) -> None:
        super().close()
        for channel in self.channels:
            channel.close()
        self.background.do(self.store.close())
        self.link.close()

    def make_whole(self) -> None:
        """Whatever the test before has broken."""
        for member in self.etcd.members:
            if member.is_running:
                member.resume()
        self.etcd.start()
        self.link.heal()
        self.start()
        eventually(lambda: all(not self.nodes_at(number).HasField("stale") for number in (0, 1)), timeout_s=30)
        self.until_healthy("echo-remora", "echo-envoy")


@contextmanager
def replicated(
    directory: Path, *, flags: Sequence[str] = (), env: dict[str, str] | None = None
) -> Iterator[Replicated]:
    """Two replicas with this environment, and beside each engine an instance and a caller."""
    background = Background()
    with etcd_cluster(directory, size=3, flags=flags) as etcd:
        mesh = Replicated(directory, etcd, background, env or {})
        try:
            mesh.start()
            for engine in ENGINES:
                options = ("--ttl", "5s", "--version", engine)
                mesh.echo(f"echo-{engine}", engine=engine, options=options, is_awaited=False)
                mesh.caller(engine)
            mesh.until_healthy("echo-remora", "echo-envoy")
            yield mesh
        finally:
            mesh.close()
    background.close()


@dataclass
class History:
    """Operations of several threads."""

    operations: list[Operation] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    """Writes that certainly were not done, by what was said."""
    in_doubt: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)
            self.in_doubt += operation.is_write and operation.end == inf

    def refuse(self, text: str) -> None:
        with self._lock:
            self.refused[text] = self.refused.get(text, 0) + 1

    @property
    def acknowledged(self) -> int:
        return sum(each.is_write and each.end != inf for each in list(self.operations))


class Traffic:
    """Calls through the mesh, and writers and readers of its resources."""

    def __init__(self, mesh: Replicated, loads: Sequence[Load]) -> None:
        self.mesh = mesh
        self.loads = loads
        self.history = History()
        self._stop = threading.Event()
        self._run = f"{monotonic():.3f}"
        work: list[Callable[[], None]] = [partial(self._write, 0), partial(self._write, 1), self._read]
        work += [partial(self._look, 0), partial(self._look, 1)]
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guarded, args=[each], daemon=True) for each in work]

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by `finish`
            self._failures.append(error)

    def begin(self) -> None:
        for key in KEYS:  # what earlier traffic left is where this one begins
            self.history.add(Operation(key, 0.0, 0.0, True, self._stored(key)))
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        """One write after the other, to the replica that answered last."""
        count, replica = 0, number
        while not self._stop.wait(PAUSE_S):
            count += 1
            key, value = KEYS[count % 2], f"{self._run}-{number}-{count}"
            resource = api_pb2.Resource()
            resource.metadata.name, resource.metadata.namespace = key, NAMESPACE
            resource.service.selector["value"] = value
            begin = monotonic()
            try:
                stub = self.mesh.stub(replica, api_pb2_grpc.ResourcesStub)
                stub.Apply(api_pb2.ApplyRequest(resources=[resource]), timeout=CALL_S)
                self.history.add(Operation(key, begin, monotonic(), True, value))
            except grpc.RpcError as error:
                failed: Any = error
                text = f"{failed.code().name}: {failed.details()}"
                if failed.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    self.history.refuse(text)
                else:
                    self.history.add(Operation(key, begin, inf, True, value))
                replica = 1 - replica

    def _read(self) -> None:
        """What stands in the store, by a client of the test's own."""
        count = 0
        while not self._stop.wait(PAUSE_S):
            count += 1
            key, begin = KEYS[count % 2], monotonic()
            try:
                value = self._stored(key)
            except StoreError:
                continue
            self.history.add(Operation(key, begin, monotonic(), False, value))

    def _stored(self, key: str) -> str | None:
        item = self.mesh.background.do(self.mesh.store.get(keys.resource("Service", NAMESPACE, key)))
        return state.read(item).service.selector["value"] if item is not None else None

    def _look(self, number: int) -> None:
        """What a replica shows may be old, and never becomes older, as long as it runs."""
        newest, process = 0, self.mesh.replicas[number]
        while not self._stop.wait(PAUSE_S * 3):
            if self.mesh.replicas[number] is not process:
                newest, process = 0, self.mesh.replicas[number]
            try:
                stub = self.mesh.stub(number, api_pb2_grpc.ResourcesStub)
                revision = stub.List(api_pb2.ListRequest(namespace=NAMESPACE), timeout=CALL_S).revision
            except grpc.RpcError:
                continue
            assert revision >= newest or self.mesh.replicas[number] is not process, f"{newest}, and then {revision}"
            newest = revision

    def goes_on(self, writes: int = 20, timeout_s: float = 30.0) -> None:
        """Return when so many more writes are acknowledged, and calls have been made meanwhile."""
        wanted = self.history.acknowledged + writes
        eventually(
            lambda: self.history.acknowledged >= wanted,
            timeout_s=timeout_s,
            message=f"writes do not go on: {self.history.refused}, {self.history.in_doubt} in doubt",
        )
        self.calls_go_on()

    def calls_go_on(self) -> None:
        for each in self.loads:
            each.more(20)

    def finish(self) -> None:
        """End, and check everything."""
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_S + 5)
        if self._failures:
            raise self._failures[0]
        for each in self.loads:
            assert each.failed == {}
        check(self.history.operations)
        self._check_last()
        self._check_converged()

    def _check_last(self) -> None:
        """What is there now was written last, or at the same time as it; the checker sees that with one more read."""
        for key in KEYS:
            begin = monotonic()
            value = self._stored(key)
            self.history.add(Operation(key, begin, monotonic(), False, value))
        check(self.history.operations)

    def _check_converged(self) -> None:
        mesh = self.mesh
        last = mesh.background.do(mesh.store.range(keys.RESOURCES))
        stored = {item.key: item.mod_revision for item in last.items}
        for number in (0, 1):
            self._until_shown(number, stored)
        request = api_pb2.WaitProgrammedRequest(revision=max(stored.values(), default=0))
        request.timeout.FromSeconds(20)
        answer = mesh.stub(0, api_pb2_grpc.ResourcesStub).WaitProgrammed(request, timeout=30)
        eventually(lambda: len(mesh.nodes_at(0).nodes) == 4, timeout_s=20, message=f"nodes are missing; {answer.nodes}")

    def _until_shown(self, number: int, stored: dict[bytes, int]) -> None:
        """Wait until a replica shows what stands in the store."""
        stub = self.mesh.stub(number, api_pb2_grpc.ResourcesStub)

        def is_same() -> bool:
            found = stub.List(api_pb2.ListRequest(), timeout=5).resources
            return {state.key_of(each): each.metadata.resource_version for each in found} == stored

        def is_there() -> bool:
            found = self.mesh.instances(replica=number)
            return sorted(each.id for each in found) == ["echo-envoy", "echo-remora"]

        eventually(is_same, timeout_s=20, message=f"replica {number} is behind")
        eventually(is_there, timeout_s=20, message=f"replica {number} does not know all instances")


@contextmanager
def under_traffic(mesh: Replicated) -> Iterator[Traffic]:
    """Traffic as long as the context lasts; then it is checked."""
    with ExitStack() as stack:
        loads = []
        for engine in ENGINES:
            caller = mesh.caller(engine)
            stub = caller.stub("echo:80")
            eventually(partial(_answers, caller, stub), timeout_s=30)
            loads.append(stack.enter_context(load(partial(caller.says, stub), threads=2, interval_s=0.02)))
        traffic = Traffic(mesh, loads)
        traffic.begin()
        traffic.goes_on(5)
        yield traffic
        traffic.finish()


def _answers(caller: Any, stub: Any) -> bool:
    try:
        return bool(caller.says(stub))
    except grpc.RpcError:
        return False
