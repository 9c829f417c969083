"""Instances: who stands behind a service, and registering one by hand."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora import exits
from remora.addresses import host_port, lease_seconds, locality, seconds, servers, service_name
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, Locality, OutputOption, Server, Service, Weight
from remora.output import Output, line, note, show, table

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2, service_pb2
    from remora.client import ControlPlane

Instance = Annotated[str, typer.Argument(metavar="HOST:PORT|INSTANCE", help="Its address, or its id.")]


def _id(address: str) -> str:
    """The id of an instance that was registered by its address."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", address).strip("-")


@app.command()
def endpoints(service: Service, server: Server = DEFAULT_SERVER, output: OutputOption = Output.table) -> None:
    """The instances behind a service. Exit code 1 if there is none."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    name, namespace = service_name(service)
    with ControlPlane(server) as plane:
        asked = api_pb2.ListInstancesRequest(service=name, namespace=namespace)
        found = list(plane.call(plane.registry.ListInstances, asked).instances)
    if output is not Output.table:
        show({"service": f"{name}.{namespace}", "endpoints": [_plain(item) for item in found]}, output)
    else:
        table(
            ("ADDRESS", "HEALTH", "VERSION", "WEIGHT", "LOCALITY", "INSTANCE"),
            [tuple(str(value) or "-" for value in _plain(item).values()) for item in found],
            empty=f"no instance of {name}.{namespace} is registered",
        )
    raise typer.Exit(exits.DONE if found else exits.NO)


def _plain(instance: "service_pb2.Instance") -> dict[str, Any]:
    from proto.mesh.v1 import service_pb2

    place = instance.locality
    return {
        "address": f"{instance.address}:{instance.port}",
        "health": service_pb2.Health.Name(instance.health),
        "version": instance.version,
        "weight": instance.weight or 1,
        "locality": "/".join(part for part in (place.region, place.zone, place.sub_zone) if part),
        "instance": instance.id,
    }


@app.command()
def register(
    service: Service,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it takes calls; an IP address.")],
    version: Annotated[str, typer.Option(help="Its version.")] = "",
    ttl: Annotated[str, typer.Option(help="How long it stays after this command ended badly.")] = "10s",
    weight: Weight = 1,
    at: Locality = "",
    node: Annotated[str, typer.Option(metavar="ID", help="Its xDS node id, if its gRPC library has one.")] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Register an instance that has no `remora run`, and keep its lease until this command is stopped."""
    import uvloop

    from proto.mesh.v1 import service_pb2
    from remora.agent.registration import keep_registered

    name, namespace = service_name(service)
    host, port = host_port(address, "HOST:PORT")
    region, zone, sub_zone = locality(at, "--locality")
    instance = service_pb2.Instance(
        id=_id(address),
        service=name,
        namespace=namespace,
        address=host,
        port=port,
        version=version,
        weight=weight,
        locality=service_pb2.Locality(region=region, zone=zone, sub_zone=sub_zone),
        node_id=node,
    )
    code = uvloop.run(
        keep_registered(
            servers(server, "--server"),
            instance,
            lease_seconds(ttl, "--ttl"),
            lambda text: note(f"remora register: {text}"),
        )
    )
    raise typer.Exit(code)


@app.command()
def deregister(
    service: Service,
    address: Instance,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take an instance out of the registry."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        key = _found(plane, service, address)
        plane.call(plane.registry.Deregister, api_pb2.DeregisterRequest(instance=key))
        line(f"{key.id} of {key.service}.{key.namespace} deregistered")


def _found(plane: "ControlPlane", service: str, address: str) -> "api_pb2.InstanceKey":
    """The instance with this address or id. Raises UsageError, typer.Exit if there is none."""
    from proto.mesh.v1 import api_pb2

    name, namespace = service_name(service)
    asked = api_pb2.ListInstancesRequest(service=name, namespace=namespace)
    for item in plane.call(plane.registry.ListInstances, asked).instances:
        if address in (item.id, f"{item.address}:{item.port}"):
            return api_pb2.InstanceKey(service=item.service, namespace=item.namespace, id=item.id)
    note(f"no instance {address} of {name}.{namespace} is registered")
    raise typer.Exit(exits.NO)


@app.command()
def drain(
    service: Service,
    instance: Instance,
    wait: Annotated[str, typer.Option(help="Longest time to wait for all callers to acknowledge it.")] = "10s",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Send an instance no new calls, whatever its program says, until `undrain`. Exit code 4 if not all callers have acknowledged it."""
    _drain(server, service, instance, seconds(wait, "--wait"), undo=False)


@app.command()
def undrain(
    service: Service,
    instance: Instance,
    wait: Annotated[str, typer.Option(help="Longest time to wait for all callers to acknowledge it.")] = "10s",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Send a drained instance calls again, as far as its program is healthy."""
    _drain(server, service, instance, seconds(wait, "--wait"), undo=True)


def _drain(server: str, service: str, instance: str, wait_s: float, *, undo: bool) -> None:
    from proto.mesh.v1 import api_pb2
    from remora.client import CALL_TIMEOUT_S, ControlPlane

    with ControlPlane(server) as plane:
        key = _found(plane, service, instance)
        request = api_pb2.DrainRequest(instance=key, undo=undo)
        request.wait.FromNanoseconds(int(wait_s * 1e9))
        answer = plane.call(plane.registry.Drain, request, wait_s + CALL_TIMEOUT_S)
        line(f"{key.id} of {key.service}.{key.namespace} {'undrained' if undo else 'drained'}")
    if wait_s and not answer.acknowledged:
        note(f"not all callers have acknowledged it within {wait_s:g} s; `remora status` names them")
        raise typer.Exit(exits.TIME_OVER)


@app.command()
def release(
    service: Annotated[str | None, typer.Argument(metavar="[NAME[.NAMESPACE]]", help="Of this service only.")] = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Let instances go that are held: those whose leases ended together with most others'. Exit code 1 if there is none."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    name, namespace = service_name(service) if service is not None else ("", "")
    with ControlPlane(server) as plane:
        asked = api_pb2.ReleaseRequest(service=name, namespace=namespace)
        count = plane.call(plane.registry.Release, asked).released
    line(f"{count} instances{f' of {name}.{namespace}' if name else ''} released")
    raise typer.Exit(exits.DONE if count else exits.NO)
