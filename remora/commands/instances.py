"""Instances: who stands behind a service, and registering one by hand."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora import exits
from remora.addresses import host_port, lease_seconds, servers, service_name
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server, Service, Weight
from remora.output import Output, line, note, show, table

if TYPE_CHECKING:
    from proto.mesh.v1 import service_pb2


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
    server: Server = DEFAULT_SERVER,
) -> None:
    """Register an instance that has no `remora run`, and keep its lease until this command is stopped."""
    import uvloop

    from proto.mesh.v1 import service_pb2
    from remora.agent.registration import keep_registered

    name, namespace = service_name(service)
    host, port = host_port(address, "HOST:PORT")
    instance = service_pb2.Instance(
        id=_id(address), service=name, namespace=namespace, address=host, port=port, version=version, weight=weight
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
    address: Annotated[str, typer.Argument(metavar="HOST:PORT|INSTANCE", help="Its address, or its id.")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take an instance out of the registry."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    name, namespace = service_name(service)
    with ControlPlane(server) as plane:
        asked = api_pb2.ListInstancesRequest(service=name, namespace=namespace)
        for item in plane.call(plane.registry.ListInstances, asked).instances:
            if address in (item.id, f"{item.address}:{item.port}"):
                key = api_pb2.InstanceKey(service=item.service, namespace=item.namespace, id=item.id)
                plane.call(plane.registry.Deregister, api_pb2.DeregisterRequest(instance=key))
                line(f"{item.id} of {name}.{namespace} deregistered")
                return
    note(f"no instance {address} of {name}.{namespace} is registered")
    raise typer.Exit(exits.NO)
