"""A whole mesh of real processes on free loopback ports: control plane, programs with their sidecars, and a client inside.

    with running(directory) as mesh:
        mesh.echo("echo-1")
        caller = mesh.caller()
        caller.stub("echo:80").Unary(...)

Everything that is started is ended by its process id, with all that it started.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc

from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from remora.agent.child import tree
from tests.waiting import eventually

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAMS: Final = ROOT / "tests" / "end_to_end" / "programs"
SERVER: Final = str(PROGRAMS / "server.py")
CLIENT: Final = str(PROGRAMS / "client.py")
START_S: Final = 60.0
"""Longest start of anything, on a machine with much else to do."""
COMMAND_S: Final = 60.0
NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would lead calls or commands elsewhere."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.lower().endswith("_proxy") and not key.startswith(("REMORA_", "GRPC_", "PYTEST_"))
    }
    return {**kept, "REMORA_PURE": os.environ.get("REMORA_PURE", ""), "COLUMNS": "200", **more}


def is_alive(pid: int) -> bool:
    """True unless the process is gone, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


class Process:
    """A running `remora …`, its output in files."""

    def __init__(self, directory: Path, name: str, words: Sequence[str], env: dict[str, str]) -> None:
        self.name = name
        self._out, self._err = directory / f"{name}.out", directory / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "remora", *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return self._err.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def until(self, pattern: str, where: str = "err") -> re.Match[str]:
        """Wait for a text on standard error (or `out`); AssertionError if the process ends without it."""

        def look() -> re.Match[str] | None:
            is_running = self.is_running
            found = re.search(pattern, self.out if where == "out" else self.err)
            assert found or is_running, f"ended with {self._process.returncode}: {self.err}"
            return found

        match = eventually(look, timeout_s=START_S, message=f"no {pattern!r} in: {self.err}")
        assert match is not None
        return match

    def send(self, number: int) -> None:
        """A signal to the process alone."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = COMMAND_S) -> int:
        """The exit code, as Python says it."""
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL to it and all below it, as a machine that loses its power."""
        for pid in tree(self.pid) if self.is_running else []:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(10)

    def child(self, word: str) -> int:
        """The process id of a child whose command line holds a word."""

        def look() -> int | None:
            for pid in tree(self.pid)[1:]:
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            return None

        found = eventually(look, timeout_s=START_S, message=f"no child with {word!r}")
        assert found is not None
        return found


class Caller:
    """A client inside the mesh: a program with a sidecar, through which the test's own calls go as that program's would."""

    def __init__(self, process: Process, schema: Any) -> None:
        self.process = process
        self.schema = schema
        self.proxy = process.until(r"grpc_proxy=(http://\S+)", "out")[1]
        self._channels: list[grpc.Channel] = []

    def channel(self, target: str) -> grpc.Channel:
        """A connection of its own to a name of the mesh."""
        options = [("grpc.http_proxy", self.proxy), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(target, options=options)
        self._channels.append(channel)
        return channel

    def stub(self, target: str = "echo:80") -> Any:
        """A stub of echo.v1.Echo."""
        return self.schema.services.EchoStub(self.channel(target))

    def says(self, stub: Any, text: str = "hello", **options: Any) -> str:
        """Which instance answers."""
        answer: str = stub.Unary(self.schema.messages.Note(text=text), timeout=5, **options).instance
        return answer

    def close(self) -> None:
        """Let go of all connections."""
        while self._channels:
            self._channels.pop().close()


@dataclass
class Load:
    """Calls that go on in threads of their own, and what came of them."""

    call: Callable[[], str]
    interval_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    """`OK`, or status and message of what failed."""
    instances: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def good(self) -> int:
        return self.outcomes["OK"]

    @property
    def failed(self) -> dict[str, int]:
        """All that did not end with OK."""
        return {text: count for text, count in self.outcomes.items() if text != "OK"}

    def run(self) -> None:
        """Call until the end."""
        while not self._stop.wait(self.interval_s):
            start = monotonic()
            try:
                instance, text = self.call(), "OK"
            except grpc.RpcError as error:
                failed: Any = error
                instance, text = "", f"{failed.code().name}: {failed.details()}"
            with self._lock:
                self.outcomes[text] += 1
                self.longest_s = max(self.longest_s, monotonic() - start)
                if instance:
                    self.instances[instance] += 1

    def more(self, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more calls have ended well."""
        wanted = self.good + count
        eventually(lambda: self.good >= wanted, timeout_s=timeout_s, message=f"only {self.outcomes}")


@contextmanager
def load(call: Callable[[], str], *, threads: int = 4, interval_s: float = 0.01) -> Iterator[Load]:
    """Calls in the background, as long as the context lasts."""
    each = Load(call, interval_s)
    workers = [threading.Thread(target=each.run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield each
    finally:
        each._stop.set()
        for worker in workers:
            worker.join(30)


_SAY_PROXY: Final = "import os, signal; print('grpc_proxy=' + os.environ['grpc_proxy'], flush=True); signal.pause()"


class Mesh:
    """A control plane and what was started in its mesh."""

    def __init__(self, directory: Path, store: str | None, options: Sequence[str] = ()) -> None:
        self.directory = directory
        self.options = options
        """Of `remora up`."""
        self.store = store or str(directory / "store")
        self.server = self.http = "127.0.0.1:0"
        self.processes: list[Process] = []
        self._stack = ExitStack()
        self._number = 0
        self._callers: dict[str, Caller] = {}

    # -- the control plane --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the control plane, or start it again at the same address with the same store."""
        is_first = self.server.endswith(":0")
        self.plane = self.spawn(
            "up", "--listen", self.server, "--http", self.http, "--store", self.store, *self.options, name="up"
        )
        said = self.plane.until(r"API on (\S+), /metrics and /healthz on (\S+), store")
        self.server, self.http = said[1], said[2]
        if is_first:
            channel = self._stack.enter_context(grpc.insecure_channel(self.server, options=list(NO_PROXY)))
            self.registry = api_pb2_grpc.RegistryStub(channel)
            self.nodes = api_pb2_grpc.MeshStub(channel)

    def instances(self, service: str = "echo", namespace: str = "default") -> list[service_pb2.Instance]:
        """Who stands behind a service."""
        asked = api_pb2.ListInstancesRequest(service=service, namespace=namespace)
        return list(self.registry.ListInstances(asked, timeout=5, wait_for_ready=True).instances)

    def healthy(self, service: str = "echo", namespace: str = "default") -> list[str]:
        """The instances that get calls."""
        return [each.id for each in self.instances(service, namespace) if each.health == service_pb2.HEALTHY]

    def until_healthy(self, *ids: str, service: str = "echo", namespace: str = "default") -> None:
        """Wait until exactly these instances get calls."""
        eventually(
            lambda: sorted(self.healthy(service, namespace)) == sorted(ids),
            timeout_s=START_S,
            message=f"not {ids} are healthy in {service}.{namespace}",
        )

    # -- commands and programs ----------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        """Of commands and programs. What is killed leaves its temporary files, here and not elsewhere."""
        here = {"XDG_STATE_HOME": str(self.directory / "state"), "TMPDIR": str(self.directory)}
        return environment(**{"REMORA_SERVER": self.server, **here, **more})

    def remora(self, *words: str, text: str | None = None, cwd: Path = ROOT, **env: str) -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "remora", *words],
            input=text, capture_output=True, text=True, timeout=COMMAND_S, cwd=cwd, env=self.environment(**env),
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    def apply(self, text: str, *words: str) -> Result:
        """`remora apply -f -`, which must succeed."""
        result = self.remora("apply", "-f", "-", *words, text=text)
        assert result.code == 0, result.err
        return result

    def spawn(self, *words: str, name: str, env: dict[str, str] | None = None) -> Process:
        """Start a command that goes on."""
        self._number += 1
        process = Process(self.directory, f"{self._number}-{name}", words, env or self.environment())
        self.processes.append(process)
        return process

    def run(self, service: str, *command: str, options: Sequence[str] = (), **env: str) -> Process:
        """Start a program with its sidecar."""
        words = ("run", "--service", service, *options, "--", *command)
        return self.spawn(*words, name=service, env=self.environment(**env))

    def echo(
        self,
        instance: str,
        service: str = "echo",
        *,
        engine: str = "remora",
        options: Sequence[str] = (),
        is_awaited: bool = True,
        **env: str,
    ) -> Process:
        """Start an instance of the echo service; wait until it is registered."""
        words = ("--instance", instance, "--engine", engine, *options)
        process = self.run(service, sys.executable, SERVER, options=words, INSTANCE=instance, **env)
        if is_awaited:
            process.until("registered as")
        return process

    def caller(self, engine: str = "remora", service: str = "caller", locality: str = "") -> Caller:
        """A client inside the mesh; one for an engine, a service and a locality."""
        from tests.end_to_end.programs import schema

        key = f"{service} {engine} {locality}"
        if key not in self._callers:
            options = ("--engine", engine, *(("--locality", locality) if locality else ()))
            process = self.run(service, sys.executable, "-c", _SAY_PROXY, options=options)
            self._callers[key] = Caller(process, schema)
        return self._callers[key]

    @contextmanager
    def guests(self) -> Iterator["Mesh"]:
        """End what was started meanwhile; callers stay."""
        before = set(self.processes)
        try:
            yield self
        finally:
            kept = before | {caller.process for caller in self._callers.values()} | {self.plane}
            for process in [each for each in self.processes if each not in kept]:
                process.kill()
                self.processes.remove(process)

    def close(self) -> None:
        """End everything."""
        for caller in self._callers.values():
            caller.close()
        self._stack.close()
        for process in self.processes:
            process.kill()


@contextmanager
def running(directory: Path, store: str | None = None, *options: str) -> Iterator[Mesh]:
    """A mesh with nothing but a control plane; the store is a directory of its own unless said otherwise."""
    mesh = Mesh(directory, store, options)
    try:
        mesh.start()
        yield mesh
    finally:
        mesh.close()
