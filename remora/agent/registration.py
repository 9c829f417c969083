"""Keeping one instance registered as long as its program is healthy, whatever happens to the control plane."""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from random import random, sample
from typing import Any, Final, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from remora import exits

log = logging.getLogger("remora.run")

CALL_TIMEOUT_S: Final = 3.0
TRY_TIMEOUT_S: Final = 1.5
"""The same where another replica can be asked."""
PROBE_TIMEOUT_S: Final = 1.0
PROBE_INTERVAL_S: Final = 1.0
FIRST_PROBE_INTERVAL_S: Final = 0.1
"""Until the program is healthy for the first time."""
FAILED_PROBES: Final = 3
"""In a row: then the instance is unhealthy."""
FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 3.0

NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)
_OPTIONS: Final = (*NO_PROXY, ("grpc.max_reconnect_backoff_ms", 1000), ("grpc.initial_reconnect_backoff_ms", 200))
_ELSEWHERE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What another replica may do better."""


class Refused(Exception):
    """The control plane does not take the instance as it is described; trying again would not help."""


class Probe:
    """Is the program healthy? (grpc.health.v1; a program without it is healthy when it answers at all)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._channel: grpc.aio.Channel | None = None

    async def is_healthy(self) -> bool:
        """One look."""
        if self._channel is None and not await self._listens():
            return False
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=list(NO_PROXY))
        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _listens(self) -> bool:
        """True if somebody takes connections; cheaper than a gRPC channel that backs off."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        writer.close()
        return True

    async def close(self) -> None:
        """Let go of the connection."""
        if self._channel is not None:
            await self._channel.close()


class Health(Protocol):
    """What says whether an instance is to get calls."""

    async def is_healthy(self) -> bool: ...

    async def close(self) -> None: ...


class Presumed:
    """The health of an instance that somebody registered by hand: good, as long as that is so."""

    async def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class Registration:
    """Registers when healthy, keeps the lease, says when health changes."""

    def __init__(
        self, servers: Sequence[tuple[str, int]], instance: service_pb2.Instance, ttl_s: float, probe: Health
    ) -> None:
        self._channels = [
            grpc.aio.insecure_channel(f"{host}:{port}", options=_OPTIONS)
            for host, port in sample(servers, len(servers))  # so that instances spread over the replicas
        ]
        self._instance = instance
        self._ttl_s = ttl_s
        self._probe = probe
        self._lease_id = 0
        self._told = service_pb2.HEALTH_UNKNOWN
        """The health that the control plane knows of."""
        self._failures = 0
        """Failed tries to register, in a row."""
        self._try_at = 0.0
        self.is_registered = False
        self._key = api_pb2.InstanceKey(service=instance.service, namespace=instance.namespace, id=instance.id)

    async def run(self, say: Callable[[str], None]) -> None:
        """Probe and keep alive, for ever. Raises Refused."""
        loop = asyncio.get_running_loop()
        failed = 0
        health: service_pb2.Health.ValueType = service_pb2.HEALTH_UNKNOWN
        renew_at = 0.0
        while True:
            if await self._probe.is_healthy():
                failed = 0
                if health == service_pb2.UNHEALTHY:
                    say("the program is healthy again; callers are told")
                health = service_pb2.HEALTHY
            elif health == service_pb2.HEALTHY:
                failed += 1
                if failed >= FAILED_PROBES:
                    health = service_pb2.UNHEALTHY
                    say("the program is not healthy any more; callers are told")
            if not self.is_registered and health != service_pb2.HEALTH_UNKNOWN:
                if loop.time() >= self._try_at and await self._register(health, say):
                    renew_at = self._next_renewal()
            elif self.is_registered and health != self._told:
                await self._set_health(health)  # if it fails, the next turn tries again
            if self.is_registered and loop.time() >= renew_at:
                await self._renew(health, say)
                renew_at = self._next_renewal()
            await asyncio.sleep(PROBE_INTERVAL_S if self.is_registered else FIRST_PROBE_INTERVAL_S)

    def _next_renewal(self) -> float:
        return asyncio.get_running_loop().time() + self._ttl_s / 3 * (0.8 + 0.4 * random())

    async def _register(self, health: service_pb2.Health.ValueType, say: Callable[[str], None]) -> bool:
        """One try; `_try_at` says when the next one is due. Raises Refused."""
        self._instance.health = health
        request = api_pb2.RegisterRequest(instance=self._instance)
        request.ttl.FromNanoseconds(int(self._ttl_s * 1e9))
        try:
            answer = await self._call("Register", request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused(f"the control plane refuses the instance: {error.details()}") from None
            if self._failures == 0:
                say(f"cannot register yet: {error.details()}")
            self._failures += 1
            wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures, 10))
            self._try_at = asyncio.get_running_loop().time() + wait * (0.5 + random())
            return False
        self._lease_id = answer.lease_id
        self._told = health
        self._failures = 0
        self.is_registered = True
        say(f"registered as {self._instance.id} at {self._instance.address}:{self._instance.port}")
        return True

    async def _renew(self, health: service_pb2.Health.ValueType, say: Callable[[str], None]) -> None:
        try:
            await self._call("KeepAlive", api_pb2.KeepAliveRequest(lease_id=self._lease_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                say("the lease has ended; registering again")
                self.is_registered = False
                await self._register(health, say)
            # Anything else: the control plane is away; the lease outlives some missed renewals, and has a grace period.

    async def _set_health(self, health: service_pb2.Health.ValueType, wait_s: float = 0.0) -> bool | None:
        """True if every caller has acknowledged it; None if the control plane could not be told."""
        request = api_pb2.SetHealthRequest(instance=self._key, health=health)
        request.wait.FromNanoseconds(int(wait_s * 1e9))
        try:
            answer = await self._call("SetHealth", request, wait_s)
        except grpc.aio.AioRpcError:
            return None
        self._told = health
        return bool(answer.acknowledged)

    async def drain(self, wait_s: float) -> bool | None:
        """Ask for no new calls; True once every caller has acknowledged that, None if the control plane does not answer."""
        return await self._set_health(service_pb2.DRAINING, wait_s)

    async def deregister(self) -> None:
        """Take the instance out of the registry."""
        if self.is_registered:
            self.is_registered = False
            try:
                await self._call("Deregister", api_pb2.DeregisterRequest(instance=self._key))
            except grpc.aio.AioRpcError as error:
                log.debug("deregister: %s", error.details())  # the lease will end by itself

    async def close(self) -> None:
        """Let go of all connections."""
        await self._probe.close()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _call(self, method: str, request: Any, wait_s: float = 0.0) -> Any:
        """Ask the replica that answered last, and the others if it does not: each of these calls may be made twice. Raises AioRpcError."""
        try_s = wait_s + (CALL_TIMEOUT_S if len(self._channels) == 1 else TRY_TIMEOUT_S)
        for left in reversed(range(len(self._channels))):
            stub = api_pb2_grpc.RegistryStub(self._channels[0])
            try:
                return await getattr(stub, method)(request, timeout=try_s)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ELSEWHERE or not left:
                    raise
                self._channels.append(self._channels.pop(0))
        raise AssertionError("no replica")


async def keep_registered(
    servers: Sequence[tuple[str, int]], instance: service_pb2.Instance, ttl_s: float, say: Callable[[str], None]
) -> int:
    """Register an instance and keep its lease until SIGTERM or SIGINT; then deregister. The exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    registration = Registration(servers, instance, ttl_s, Presumed())
    keeping = asyncio.create_task(registration.run(say))
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait((keeping, stopping), return_when=asyncio.FIRST_COMPLETED)
        if keeping in done:
            await keeping
    except Refused as error:
        say(str(error))
        return exits.BAD_INPUT
    finally:
        for task in (keeping, stopping):
            task.cancel()
        await asyncio.gather(keeping, stopping, return_exceptions=True)
        await registration.deregister()
        await registration.close()
    return exits.DONE
