"""One control-plane process: store, mirror, ADS, API, put together and taken apart."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from envoy.service.discovery.v3 import ads_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from control_plane.ads.service import MAX_STREAMS, AdsService
from control_plane.api import http
from control_plane.api.client_status import ClientStatus
from control_plane.api.entrance import Entrance
from control_plane.api.identity import IdentityService
from control_plane.api.reflected import Pool
from control_plane.api.replicas import Replicas
from control_plane.api.service import MeshService, RegistryService, Resources
from control_plane.identity.issuer import Issuer
from control_plane.registry import format, keys
from control_plane.registry.dns import Resolver, Server
from control_plane.registry.external import External
from control_plane.registry.mirror import Mirror
from control_plane.registry.registry import Registry
from control_plane.registry.sweeper import Retention, Sweeper
from control_plane.store import open_store, shown
from control_plane.store.contract import Store, StoreUnavailable
from control_plane.store.election import Election
from proto.mesh.v1 import api_pb2, api_pb2_grpc, identity_pb2, identity_pb2_grpc

log = logging.getLogger("remora.api")

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""A request; longer ones get RESOURCE_EXHAUSTED from gRPC."""
MAX_CALLS: Final = 2 * MAX_STREAMS + 10_000
"""At a time, streams of nodes and of their agents included; more get RESOURCE_EXHAUSTED from gRPC."""
LOAD_TIMEOUT_S: Final = 10.0
STOP_GRACE_S: Final = 1.0
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class CannotListen(Exception):
    """An address cannot be listened on; the text says which."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running control plane."""

    port: int
    """Of xDS and API."""
    http_port: int | None
    """Of `/metrics` and `/healthz`; None if they are not served."""
    mirror: Mirror
    ads: AdsService
    store: Store
    replicas: Replicas


@asynccontextmanager
async def running(
    listen: tuple[str, int],
    store_target: str,
    http_listen: tuple[str, int] | None,
    issuing: Callable[[Store], Issuer] | None = None,
    *,
    advertise: str = "",
    retention: Retention | None = None,
    name_servers: list[Server] | None = None,
) -> AsyncIterator[ControlPlane]:
    """Run a control plane as long as the context lasts. Raises StoreError, CannotListen, KeyringError.

    `issuing` makes the authority that signs; without it the mesh has no identities. `advertise` is where other replicas reach this one, if
    that is not where it listens. `retention` says how much history the store keeps. `name_servers` are asked for external names; None for those of the machine.
    """
    store = await open_store(store_target)
    issuer = issuing(store) if issuing is not None else None
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            await format.settle(store)
            if issuer is not None:
                await issuer.prepare()
    except TimeoutError:
        await store.close()
        raise StoreUnavailable(f"store {shown(store_target)} has not answered for {LOAD_TIMEOUT_S:g} s") from None
    except BaseException:
        await store.close()
        raise
    mirror = Mirror(store, has_identities=issuer is not None)
    ads = AdsService()
    mirror.on_change(ads.on_state)
    follower = asyncio.create_task(mirror.run())
    follower.add_done_callback(_say_if_it_failed)
    registry, replicas = Registry(store), Replicas(store)
    sweeper = Sweeper(store, mirror, registry, retention)
    external = External(store, mirror, Resolver(name_servers))
    election = Election(store, keys.OWNER, f"{socket.gethostname()} pid {os.getpid()}")
    owner: asyncio.Task[None] | None = None
    entrance = Entrance()
    server = grpc.aio.server(interceptors=[entrance], options=list(_OPTIONS), maximum_concurrent_rpcs=MAX_CALLS)
    web = None
    try:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await mirror.is_loaded.wait()
        except TimeoutError:
            raise StoreUnavailable(f"store {shown(store_target)} has not answered for {LOAD_TIMEOUT_S:g} s") from None
        api_pb2_grpc.add_ResourcesServicer_to_server(Resources(store, mirror, ads, replicas), server)
        api_pb2_grpc.add_RegistryServicer_to_server(RegistryService(registry, mirror, ads, replicas), server)
        api_pb2_grpc.add_MeshServicer_to_server(MeshService(mirror, ads, replicas), server)
        identity_pb2_grpc.add_IdentityServicer_to_server(IdentityService(issuer, mirror), server)
        csds_pb2_grpc.add_ClientStatusDiscoveryServiceServicer_to_server(ClientStatus(ads), server)
        server.add_generic_rpc_handlers((ads.handler(),))
        healths = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)
        services = [service.full_name for service in api_pb2.DESCRIPTOR.services_by_name.values()]
        services += [service.full_name for service in identity_pb2.DESCRIPTOR.services_by_name.values()]
        services += [service.full_name for service in ads_pb2.DESCRIPTOR.services_by_name.values()]
        services += [service.full_name for service in csds_pb2.DESCRIPTOR.services_by_name.values()]
        for name in ["", *services]:
            await healths.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server, Pool())
        try:
            port = server.add_insecure_port(f"{listen[0]}:{listen[1]}")
        except RuntimeError:
            reason = await asyncio.get_running_loop().run_in_executor(None, _why_not, *listen)
            raise CannotListen(f"cannot listen on {listen[0]}:{listen[1]}: {reason}") from None
        if http_listen is not None:
            try:
                web = http.serve(*http_listen, mirror, ads, entrance, http.Upkeep(election, sweeper))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise CannotListen(f"cannot listen on {http_listen[0]}:{http_listen[1]}: {reason}") from None
        await server.start()
        owner = asyncio.create_task(election.run(lambda term: _all(sweeper.run(term), external.run(term))))
        owner.add_done_callback(_say_if_it_sweeps_no_more)
        async with replicas.present(advertise or f"{_reachable(listen[0])}:{port}"):
            yield ControlPlane(port, web.server_port if web is not None else None, mirror, ads, store, replicas)
    finally:
        if owner is not None:
            owner.cancel()
            await asyncio.gather(owner, return_exceptions=True)
        await server.stop(STOP_GRACE_S)
        if web is not None:
            await asyncio.get_running_loop().run_in_executor(None, web.shutdown)
            web.server_close()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await store.close()


def _say_if_it_failed(follower: asyncio.Task[None]) -> None:
    if not follower.cancelled() and follower.exception() is not None:
        log.critical("the store is not followed any more; restart this control plane", exc_info=follower.exception())


async def _all(*works: Coroutine[Any, Any, None]) -> None:
    """Until the first of them ends, or fails."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say_if_it_sweeps_no_more(owner: asyncio.Task[None]) -> None:
    if not owner.cancelled() and owner.exception() is not None:
        log.critical("the store is swept no more by this control plane; restart it", exc_info=owner.exception())


def _reachable(host: str) -> str:
    """Where others find who listens on every address."""
    return socket.gethostname() if host in ("0.0.0.0", "[::]") else host


def _why_not(host: str, port: int) -> str:
    """Why an address cannot be listened on: gRPC does not say it, so it is tried once more."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as tried:
            tried.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "gRPC could not bind it"
