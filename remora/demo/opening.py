"""What every demo does before it shows anything: ports, a control plane that answers, instances that are healthy."""

import asyncio
import socket
from time import monotonic
from typing import Final

import grpc

from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from remora import exits
from remora.agent import ports
from remora.commands.failure import Failure
from remora.demo.fleet import Fleet
from remora.demo.tour import NAMESPACE

ENGINES: Final = ("remora", "envoy", "mixed")
START_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.05
DURABILITY: Final = {"BOOKSTORE_SYNCHRONOUS": "NORMAL"}
"""Safe at SIGKILL, which the demo does; only a power cut would lose purchases, and a slow disk does not set the pace."""


def usual_ports() -> tuple[int, int]:
    """The control plane's usual ports if they are free, so that `remora status` beside the demo needs no option."""
    usual = (15010, 15014)
    probes: list[socket.socket] = []
    try:
        for port in usual:
            probe = socket.socket()
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probes.append(probe)
            probe.bind(("127.0.0.1", port))
        return usual
    except OSError:
        api, http = ports.free(2)
        return api, http
    finally:
        for probe in probes:
            probe.close()


def engine_of(engine: str, number: int) -> str:
    """Of the instance with this number, in a fleet of the engine that was asked for."""
    if engine != "mixed":
        return engine
    return "envoy" if number % 2 else "remora"


async def until_up(fleet: Fleet, channel: grpc.aio.Channel) -> None:
    """The control plane answers. Raises Failure."""
    mesh = api_pb2_grpc.MeshStub(channel)
    end = monotonic() + START_TIMEOUT_S
    while True:
        check_all_alive(fleet)
        try:
            await mesh.Nodes(api_pb2.NodesRequest(), timeout=1)
            return
        except grpc.aio.AioRpcError as error:
            if monotonic() > end:
                raise Failure(f"the control plane did not come up: {error.details()}", exits.NO) from None
        await asyncio.sleep(POLL_S)


async def until_healthy(fleet: Fleet, registry: "api_pb2_grpc.RegistryAsyncStub", service: str, wanted: int) -> None:
    """So many instances of a service get calls. Raises Failure."""
    end = monotonic() + START_TIMEOUT_S
    request = api_pb2.ListInstancesRequest(service=service, namespace=NAMESPACE)
    while True:
        check_all_alive(fleet)
        answer = await registry.ListInstances(request, timeout=5)
        healthy = [item for item in answer.instances if item.health == service_pb2.HEALTHY]
        if len(healthy) >= wanted:
            return
        if monotonic() > end:
            text = f"{len(healthy)} of {wanted} instances of {service} are healthy after {START_TIMEOUT_S:g} s"
            raise Failure(text, exits.NO)
        await asyncio.sleep(POLL_S)


def check_all_alive(fleet: Fleet) -> None:
    """Raises Failure if a process ended that nobody asked to."""
    for member in fleet.ended():
        tail = fleet.tail(member.name)
        raise Failure(f"{member.name} ended with exit code {member.process.returncode}:\n{tail}", exits.NO)
