"""The ADS client: keeps the proxy at what the control plane says (xDS v3, state of the world or delta).

Resources are accepted or refused as a whole response, as the protocol wants; what was accepted last stays in force until something
better comes, also while the control plane is away. It is kept on disk too (`keeper`): a process that starts and gets nothing from a
control plane within two seconds goes by what is kept there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from envoy.config.core.v3 import base_pb2
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from sidecar.proxy.config import Configuration, Direction, ListenerConfig, RouteTable
from sidecar.proxy.listener import ListenError
from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.stats import Stats
from sidecar.xds import convert
from sidecar.xds.bootstrap import Bootstrap, check_secrets
from sidecar.xds.discovery import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
    Delta,
    StateOfTheWorld,
    Subscription,
    Variant,
)
from sidecar.xds.keeper import Keeper
from sidecar.xds.secrets import SecretsClient
from sidecar.xds.snapshot import Part, Snapshot
from sidecar.xds.supported import ConfigError, unpack

log = logging.getLogger("remora.xds")

FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 5.0
"""Waits between tries double from the first to the longest, times 0.5 to 1.5 by chance."""
CONNECT_S: Final = 3.0
"""A control plane that takes the connection and says nothing is left after so long."""
KEPT_AFTER_S: Final = 2.0
"""What is kept on disk is used if nothing has come so long after the start; at once when a control plane cannot be reached."""
PROGRAM_POLL_S: Final = 0.1
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
KEEPALIVE: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


def _routes(message: Any) -> RouteTable:
    table = convert.route_table(message)
    if table.validates_clusters:
        raise ConfigError(
            f"route_config[{table.name}].validate_clusters",
            "only false is supported for routes that come by RDS (RMR0131)",
        )
    return table


_CONVERTERS: Final[dict[str, Callable[[Any], Any]]] = {
    CLUSTER: convert.cluster,
    ENDPOINTS: convert.load_assignment,
    LISTENER: convert.listener,
    ROUTES: _routes,
}


async def _connected(channel: grpc.aio.Channel) -> None:
    """Returns when the connection stands, or has failed; then the first call says why. Raises TimeoutError."""
    async with asyncio.timeout(CONNECT_S):
        state = channel.get_state(try_to_connect=True)
        while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)


class AdsClient:
    """One stream at a time to the control plane; `run` never ends by itself."""

    def __init__(
        self, bootstrap: Bootstrap, proxy: Proxy, stats: Stats, is_ready: asyncio.Event, keeper: Keeper | None = None
    ) -> None:
        assert bootstrap.ads
        self._targets = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in bootstrap.ads]
        node = base_pb2.Node()
        node.ParseFromString(bootstrap.node)
        node.user_agent_name = "remora"
        node.user_agent_version = "0.1.0"
        self._node = node
        self._static = bootstrap.configuration
        self._variant: Variant = Delta() if bootstrap.is_delta else StateOfTheWorld()
        self._proxy = proxy
        self._stats = stats
        self._is_ready = is_ready
        self._keeper = keeper
        self._sources = dict(bootstrap.secret_sources)
        self._secrets = SecretsClient(self._sources, bootstrap.node, stats, self._on_secrets)
        self._changing = asyncio.Lock()
        self._has_looked = False
        """At what is kept on disk."""
        self._is_kept = asyncio.Event()
        """What is kept on disk has been put in force."""
        self._waits_for_program = False
        """Inbound calls are not taken yet."""
        self._is_open = False
        self._chance = Random()
        self._chance.shuffle(self._targets)  # so that sidecars spread over the control planes
        self._types = {url: Subscription(url) for url in (CLUSTER, ENDPOINTS, LISTENER, ROUTES)}
        self._requests: asyncio.Queue[Any] = asyncio.Queue()

    async def run(self) -> None:
        """Connect, follow, connect again: to the next control plane, if there are several."""
        background = [asyncio.create_task(work) for work in self._background()]
        self._secrets.want(self._static.secret_refs)
        try:
            await self._run()
        finally:
            await self._secrets.close()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [self._keeper.run(), self._use_kept_in_time(), self._let_in()] if self._keeper is not None else []

    async def _run(self) -> None:
        failures = 0
        while True:
            target = self._targets[0]
            try:
                async with grpc.aio.insecure_channel(target, options=list(KEEPALIVE)) as channel:
                    await _connected(channel)
                    await self._follow(channel)
                failures = 0
            except TimeoutError:
                failures += 1
                log.warning("control plane %s: no connection within %g s", target, CONNECT_S)
            except grpc.aio.AioRpcError as error:
                failures = 0 if self._stats.control_plane_connected else failures + 1
                log.warning("control plane %s: %s %s", target, error.code().name, error.details())
            finally:
                self._is_open = False
            self._stats.control_plane_connected = 0
            if failures >= len(self._targets):
                await self._use_kept()
            self._targets.append(self._targets.pop(0))
            # The longer wait begins when none of them can be reached.
            rounds = failures // len(self._targets)
            wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(rounds, 10))
            await asyncio.sleep(wait * (0.5 + self._chance.random()))

    # -- what is kept on disk -------------------------------------------------------------------------

    async def _use_kept_in_time(self) -> None:
        await asyncio.sleep(KEPT_AFTER_S)
        if not any(subscription.version for subscription in self._types.values()):
            await self._use_kept()

    async def _use_kept(self) -> None:
        """Go by what is kept on disk, if there is nothing in force yet. Versions are not taken over: they are of the control
        plane of that time, and another one may count the same number for something else."""
        if self._keeper is None:
            return
        async with self._changing:
            if self._is_ready.is_set() or self._has_looked:
                return
            self._has_looked = True
            found = await self._keeper.restore()
            if found is None:
                return
            # Callers may still have this instance among the healthy ones, and its program may be about to start.
            self._waits_for_program = not await self._program_listens()
            before = self._in_force()
            try:
                self._take_over(found)
                await self._apply()
            except (ConfigError, ListenError) as error:
                self._put_back(before)
                self._name_again()
                self._waits_for_program = False
                self._keeper.refuse(str(error))
                return
            self._is_kept.set()
            self._keeper.is_in_force = True
            log.warning(
                "no control plane answers yet: going by the configuration of %s, known to be current until %d s ago",
                datetime.fromtimestamp(found.saved_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
                self._keeper.age_s,
            )
            if self._is_open:
                for url in (ENDPOINTS, ROUTES):
                    if self._types[url].names:
                        self._ask(self._types[url])
            if self._secrets.has_all:
                self._is_ready.set()

    async def _let_in(self) -> None:
        """Take inbound calls by what was kept once there is a program for them: until then callers try another instance."""
        await self._is_kept.wait()
        while self._waits_for_program:
            if await self._program_listens():
                async with self._changing:
                    self._waits_for_program = False
                    try:
                        await self._apply()
                    except (ConfigError, ListenError) as error:
                        log.error("inbound calls cannot be taken yet: %s", error)
            else:
                await asyncio.sleep(PROGRAM_POLL_S)

    async def _program_listens(self) -> bool:
        """Also true if there is no program."""
        fields = self._node.metadata.fields
        port = int(fields["app_port"].number_value) if "app_port" in fields else 0
        host = fields["app_address"].string_value if "app_address" in fields else "127.0.0.1"
        if not port:
            return True
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:  # TimeoutError is one
            return False
        writer.close()
        return True

    def _take_over(self, found: Snapshot) -> None:
        for each in self._types.values():
            each.version = ""
        for part in found.parts:
            subscription = self._types.get(part.type_url)
            if subscription is None:
                raise ConfigError("", f"{part.type_url} is not supported")
            subscription.resources = self._read(
                subscription, [any_pb2.Any(type_url=part.type_url, value=data) for data in part.resources]
            )
        self._name_again()
        self._trim()

    def _name_again(self) -> None:
        for parent, child in ((CLUSTER, ENDPOINTS), (LISTENER, ROUTES)):
            self._types[child].names = self._wanted(parent)

    def _parts(self) -> tuple[Part, ...]:
        """What is in force, to be kept."""
        return tuple(
            Part(each.type_url, each.version, tuple(data for data, _ in each.resources.values()))
            for each in self._types.values()
        )

    # -- one stream -----------------------------------------------------------------------------------

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        """One stream, until it ends."""
        self._requests = asyncio.Queue()
        self._is_open = True
        for subscription in self._types.values():
            subscription.begin()
        call = channel.stream_stream(
            self._variant.method,
            request_serializer=self._variant.request_type.SerializeToString,
            response_deserializer=self._variant.response_type.FromString,
        )(self._outgoing())
        self._ask(self._types[CLUSTER])
        self._ask(self._types[LISTENER])
        for url in (ENDPOINTS, ROUTES):
            if self._types[url].names:
                self._ask(self._types[url])
        async for response in call:
            self._stats.control_plane_connected = 1
            async with self._changing:
                await self._on_response(response)

    async def _outgoing(self) -> AsyncIterator[Any]:
        while True:
            yield await self._requests.get()

    def _ask(self, subscription: Subscription, fault: str = "") -> None:
        """Send a request: the first one, an ACK, a NACK, or one with other names."""
        node = self._node if self._requests.empty() and not self._any_asked() else None
        request = self._variant.request(subscription, node, fault)
        subscription.is_asked = True
        self._requests.put_nowait(request)

    def _any_asked(self) -> bool:
        return any(subscription.is_asked for subscription in self._types.values())

    async def _on_response(self, response: Any) -> None:
        subscription = self._types.get(response.type_url)
        if subscription is None:
            return
        subscription.nonce = response.nonce
        heard = self._variant.heard(response)
        before = self._in_force()
        try:
            fresh = self._read(subscription, heard.packed)
            subscription.resources = self._variant.merged(subscription, fresh, heard)
            self._trim()
            await self._apply()
        except (ConfigError, ListenError) as error:
            self._put_back(before)
            self._stats.config_rejected += 1
            log.error("refused %s version %s: %s", response.type_url, heard.version, error)
            self._ask(subscription, str(error))
            return
        self._variant.accepted(subscription, heard)
        self._ask(subscription)
        self._follow_names(CLUSTER, ENDPOINTS)
        self._follow_names(LISTENER, ROUTES)
        if self._is_complete():
            if self._secrets.has_all:
                self._is_ready.set()
            if self._keeper is not None:
                self._keeper.keep(self._parts)

    async def _apply(self) -> None:
        """Put in force what there is, and follow the secrets that it refers to. Raises ConfigError, ListenError."""
        configuration = self._configuration()
        check_secrets(configuration, self._sources)
        await self._proxy.apply(configuration)
        self._secrets.want(configuration.secret_refs)

    async def _on_secrets(self) -> None:
        """New ones: for new connections."""
        async with self._changing:
            await self._proxy.apply(self._configuration())
            is_by_kept = self._keeper is not None and self._keeper.is_in_force
            if self._secrets.has_all and (is_by_kept or self._is_complete()):
                self._is_ready.set()

    def _in_force(self) -> dict[str, dict[str, tuple[bytes, Any]]]:
        return {url: each.resources for url, each in self._types.items()}

    def _put_back(self, before: dict[str, dict[str, tuple[bytes, Any]]]) -> None:
        for url, resources in before.items():
            self._types[url].resources = resources

    def _read(self, subscription: Subscription, packed: Iterable[Any]) -> dict[str, tuple[bytes, Any]]:
        """Convert what changed. Raises ConfigError with every fault."""
        converter = _CONVERTERS[subscription.type_url]
        fresh: dict[str, tuple[bytes, Any]] = {}
        faults: list[str] = []
        known = {data: item for _, (data, item) in subscription.resources.items()}
        for number, item in enumerate(packed):
            try:
                converted = known.get(item.value)
                if converted is None:
                    converted = converter(unpack(item, f"resources[{number}]"))
                name = converted[0] if isinstance(converted, tuple) else converted.name
                if name in fresh:
                    raise ConfigError(f"resources[{number}]", f'"{name}" is given twice (RMR0129)')
                fresh[name] = (item.value, converted)
            except (ConfigError, DecodeError) as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("", "; ".join(faults))
        return fresh

    def _wanted(self, url: str) -> tuple[str, ...]:
        """The names that the clusters or the listeners in force refer to."""
        found: dict[str, None] = {}
        for item in (*self._at_start(url), *(item for _, item in self._types[url].resources.values())):
            names = (item.eds_name,) if url == CLUSTER else item.rds_names
            for name in names:
                if name is not None:
                    found[name] = None
        return tuple(sorted(found))

    def _at_start(self, url: str) -> tuple[Any, ...]:
        """What stands in the bootstrap: it may refer to what the control plane brings."""
        return self._static.clusters if url == CLUSTER else self._static.listeners

    def _trim(self) -> None:
        """Forget endpoints and routes that nothing refers to any more."""
        for parent, child in ((CLUSTER, ENDPOINTS), (LISTENER, ROUTES)):
            wanted = set(self._wanted(parent))
            subscription = self._types[child]
            subscription.resources = {name: item for name, item in subscription.resources.items() if name in wanted}

    def _follow_names(self, parent: str, child: str) -> None:
        """Subscribe to what the parents name now."""
        subscription = self._types[child]
        names = self._wanted(parent)
        if names != subscription.names:
            subscription.names = names
            self._ask(subscription)

    def _is_complete(self) -> bool:
        """True once there is all that the listeners and clusters need."""
        return all(
            self._types[parent].version and self._needed(parent) <= set(self._types[child].resources)
            for parent, child in ((CLUSTER, ENDPOINTS), (LISTENER, ROUTES))
        )

    def _needed(self, url: str) -> set[str]:
        """The names without which calls cannot be made; where this process and those like it run may come later."""
        here = {item.eds_name for item in self._static.clusters if item.name == self._static.local_cluster}
        brought = {item.eds_name for _, item in self._types[CLUSTER].resources.values()}
        return set(self._wanted(url)) - (here - brought if url == CLUSTER else set())

    def _configuration(self) -> Configuration:
        def items(url: str) -> tuple[Any, ...]:
            return tuple(item for _, item in self._types[url].resources.values())

        def is_open(listener: ListenerConfig) -> bool:
            return not (self._waits_for_program and listener.direction is Direction.INBOUND)

        return Configuration(
            listeners=self._static.listeners + tuple(filter(is_open, items(LISTENER))),
            clusters=self._static.clusters + items(CLUSTER),
            route_tables=items(ROUTES),
            endpoints=items(ENDPOINTS),
            secrets=(*self._static.secrets, *self._secrets.values.items()),
            local_cluster=self._static.local_cluster,
            locality=self._static.locality,
        )
