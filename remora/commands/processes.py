"""Commands that are processes: the control plane, a sidecar, a program with its sidecar, the demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remora.addresses import UsageError, host_port, lease_seconds, locality, seconds, servers, service_name
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, Locality, Server, Weight
from remora.output import line

if TYPE_CHECKING:
    from remora.agent.bootstrap import NodeSpec

Engine = Annotated[str, typer.Option(help="The data plane: remora or envoy.")]
ServiceOption = Annotated[str, typer.Option("--service", metavar="NAME[.NAMESPACE]", help="The service it is part of.")]
Version = Annotated[str, typer.Option("--version", help="Its version, for routing and metrics.")]


@app.command()
def up(
    listen: Annotated[str, typer.Option(help="HOST:PORT for xDS and the API.")] = DEFAULT_SERVER,
    store: Annotated[
        str | None,
        typer.Option(metavar="DIR|etcd://H:P,H:P", help="Where the truth is kept; default: a directory of yours."),
    ] = None,
    http: Annotated[str, typer.Option(help="HOST:PORT for /metrics and /healthz.")] = "127.0.0.1:15014",
    mtls: Annotated[
        bool, typer.Option("--mtls/--no-mtls", help="Give services identities, by which sidecars know each other.")
    ] = True,
    trust_domain: Annotated[
        str, typer.Option(help="Of the identities, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE.")
    ] = "remora.local",
    certificate_life: Annotated[
        str, typer.Option(help="How long services' certificates last; renewed when half of it is over.")
    ] = "24h",
    identity: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where the authority's keys are; default: beside the store.")
    ] = None,
    ca_cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="An authority of yours, PEM: its certificate first, the root last."),
    ] = None,
    ca_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    advertise: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where other replicas reach this one; default: where it listens.")
    ] = "",
    keep_history: Annotated[str, typer.Option(help="How long the store keeps the changes of the past.")] = "1h",
) -> None:
    """Run the control plane in the foreground. Several on one etcd are replicas: any of them will do for anybody."""
    from remora.up import Identities, Replication
    from remora.up import run as run_up

    if (ca_cert is None) != (ca_key is None):
        raise UsageError("--ca-cert and --ca-key belong together: give both, or none")
    ca = (ca_cert, ca_key) if ca_cert is not None and ca_key is not None else None
    life_s = seconds(certificate_life, "--certificate-life")
    identities = Identities(trust_domain, identity, life_s, ca) if mtls else None
    replication = Replication(advertise, seconds(keep_history, "--keep-history"))
    raise typer.Exit(run_up(listen, store, http, identities, replication))


Inbound = Annotated[str, typer.Option(help="Where callers reach the instance; port 0 for none.")]
AppAddress = Annotated[str, typer.Option("--app", help="Where the program listens.")]
Outbound = Annotated[str, typer.Option(help="Where the program's gRPC library sends CONNECT.")]
Admin = Annotated[str, typer.Option(help="Where the admin endpoint listens.")]
Node = Annotated[str, typer.Option("--node", metavar="ID", help="Node id; default: made from service and host.")]


@app.command()
def sidecar(
    config: Annotated[
        str, typer.Option("--config", "-c", help="Envoy v3 bootstrap, YAML or JSON; or say --service and what follows.")
    ] = "",
    snapshot: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Keep the last good configuration there, and start by it without a control plane."
        ),
    ] = None,
    service: Annotated[
        str,
        typer.Option("--service", metavar="NAME[.NAMESPACE]", help="Instead of a file: as `remora bootstrap` has it."),
    ] = "",
    node: Node = "",
    version: Version = "",
    at: Locality = "",
    inbound: Inbound = "127.0.0.1:15006",
    app_address: AppAddress = "127.0.0.1:50051",
    outbound: Outbound = "127.0.0.1:15001",
    admin: Admin = "127.0.0.1:15000",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Run a sidecar alone; SIGTERM drains it."""
    if not config and not service:
        raise UsageError("sidecar: missing option '--config'; give it a FILE, or --service NAME instead")
    if config and service:
        raise UsageError("sidecar: --config and --service say the same; give one of them")
    if service:
        import json
        import os
        import sys
        import tempfile

        from remora.agent import bootstrap as writer

        spec = _node_spec(service, node, version, at, inbound, app_address, outbound, admin, server)
        with tempfile.NamedTemporaryFile("w", prefix="remora-", suffix=".json", delete=False) as file:
            json.dump(writer.envoy(spec), file)
        more = ["--snapshot", snapshot] if snapshot else []
        # Anew, without what a command line costs: it stays for as long as the program beside it does.
        os.execv(sys.executable, [sys.executable, "-m", "remora", "sidecar", "-c", file.name, *more])
    from remora.sidecar import main

    raise typer.Exit(main(config, snapshot))


@app.command()
def ready(admin: Admin = "127.0.0.1:15000") -> None:
    """Whether the sidecar with this admin endpoint has its first configuration: exit code 0 if so, else 1. For probes."""
    from remora.agent.ready import ready as ask

    raise typer.Exit(ask(*host_port(admin, "--admin")))


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    service: ServiceOption,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD…", help="The program and its arguments.")
    ] = None,
    version: Version = "",
    engine: Engine = "remora",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port that the program listens on; default: a free one, told as PORT.")
    ] = 0,
    instance: Annotated[str, typer.Option(help="Name of this instance; default: made up.")] = "",
    weight: Weight = 1,
    at: Locality = "",
    ttl: Annotated[str, typer.Option(help="How long it stays registered after it vanished.")] = "10s",
    mtls: Annotated[
        bool,
        typer.Option("--mtls/--no-mtls", help="Have an identity, if the mesh has any, and speak mutual TLS by it."),
    ] = True,
    token: Annotated[
        str,
        typer.Option(
            envvar="REMORA_JOIN_TOKEN",
            help="From `remora token create`; needed where the control plane is not your own.",
        ),
    ] = "",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Run a program with its sidecar: in the mesh, found by others, drained before it stops."""
    from remora.agent.command import RunSpec, run_command, split_command

    name, namespace = service_name(service)
    spec = RunSpec(
        service=name,
        namespace=namespace,
        version=version,
        engine=engine,
        servers=servers(server, "--server"),
        command=split_command(command or ()),
        port=port,
        instance_id=instance,
        weight=weight,
        locality=locality(at, "--locality"),
        ttl_s=lease_seconds(ttl, "--ttl"),
        mtls=mtls,
        join_token=token,
    )
    raise typer.Exit(run_command(spec))


@app.command()
def bootstrap(
    service: ServiceOption,
    engine: Annotated[str, typer.Option(help="remora, envoy, or grpc (a proxyless client).")] = "remora",
    node: Node = "",
    version: Version = "",
    at: Locality = "",
    inbound: Inbound = "127.0.0.1:15006",
    app_address: AppAddress = "127.0.0.1:50051",
    outbound: Outbound = "127.0.0.1:15001",
    admin: Admin = "127.0.0.1:15000",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print what a data plane needs that `remora run` does not start."""
    import json

    from remora.agent import bootstrap as writer

    if engine not in writer.WRITERS:
        raise UsageError(f'--engine: "{engine}" is not known; known: {", ".join(writer.WRITERS)}')
    spec = _node_spec(service, node, version, at, inbound, app_address, outbound, admin, server)
    line(json.dumps(writer.WRITERS[engine](spec), indent=2))


def _node_spec(
    service: str,
    node: str,
    version: str,
    at: str,
    inbound: str,
    app_address: str,
    outbound: str,
    admin: str,
    server: str,
) -> "NodeSpec":
    import socket

    from remora.agent.bootstrap import NodeSpec

    name, namespace = service_name(service)
    return NodeSpec(
        node_id=node or f"{name}.{namespace}~{socket.gethostname()}",
        service=name,
        namespace=namespace,
        version=version,
        control_planes=servers(server, "--server"),
        locality=locality(at, "--locality"),
        inbound=host_port(inbound, "--inbound"),
        app=host_port(app_address, "--app"),
        outbound=host_port(outbound, "--outbound"),
        admin=host_port(admin, "--admin"),
    )


@app.command()
def demo(
    for_: Annotated[str, typer.Option("--for", help="Load runs at least so long, and until the tour is over.")] = "30s",
    engine: Annotated[str, typer.Option(help="The data planes: remora, envoy or mixed.")] = "remora",
    store: Annotated[str | None, typer.Option(metavar="DIR|etcd://H:P,H:P", help="Default: a temporary one.")] = None,
    transactions: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(("saga", "tcc", "outbox", "xa", "naive", "all")),
            help="Instead of the tour: purchases by this way.",
        ),
    ] = None,
    chaos: Annotated[bool, typer.Option("--chaos", help="With --transactions: kill processes meanwhile.")] = False,
    seed: Annotated[int, typer.Option(help="With --transactions: decides who buys what and who is killed.")] = 7,
    small: Annotated[bool, typer.Option("--small", help="With --transactions: fewer instances.")] = False,
    picture: Annotated[Path | None, typer.Option(hidden=True, help="Write docs/demo.svg, or another SVG.")] = None,
) -> None:
    """A bookstore in a live mesh, and a tour that shows what the mesh does. Exit code 0 if all was as expected."""
    if transactions is not None:
        from remora.demo.transactions import TransactionsSpec, run_transactions, ways_of

        ways = ways_of(transactions)
        asked = TransactionsSpec(ways, seconds(for_, "--for"), chaos, engine, store, small, seed)
        raise typer.Exit(run_transactions(asked))
    if chaos or small:
        raise UsageError("--chaos and --small go with --transactions only; say which way, or all")
    from remora.demo.run import DemoSpec, run_demo

    raise typer.Exit(run_demo(DemoSpec(seconds(for_, "--for"), engine, store, picture)))
