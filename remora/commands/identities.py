"""Identities: join tokens, who holds a certificate, and changing the root."""

from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora import exits
from remora.addresses import UsageError, seconds, service_name
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server
from remora.output import Output, line, note, show, table

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from proto.mesh.v1 import identity_pb2

token = typer.Typer(help="Join tokens, by which an instance gets its first certificate.", no_args_is_help=True)
cert = typer.Typer(help="Who holds a certificate, and changing the root.", no_args_is_help=True)
app.add_typer(token, name="token")
app.add_typer(cert, name="cert")

STAGES = ("add", "switch", "drop", "intermediate")
SHOWN = 16
"""Digits of a fingerprint that tell roots apart."""


@token.command("create")
def create_token(
    service: Annotated[str, typer.Option("--service", metavar="NAME[.NAMESPACE]", help="The only service it is for.")],
    ttl: Annotated[str, typer.Option(help="How long it can be used, 5s to 24h.")] = "1h",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Print a token that one instance of a service may use once: give it to `remora run` as REMORA_JOIN_TOKEN."""
    from proto.mesh.v1 import identity_pb2
    from remora.client import ControlPlane

    name, namespace = service_name(service)
    ttl_s = seconds(ttl, "--ttl")
    if not 5 <= ttl_s <= 86_400:
        raise UsageError(f'--ttl: "{ttl}" is no life of a token; from 5s to 24h')
    request = identity_pb2.CreateTokenRequest(name=name, namespace=namespace)
    request.ttl.FromNanoseconds(int(ttl_s * 1e9))
    with ControlPlane(server) as plane:
        answer = plane.call(plane.identity.CreateToken, request, as_operator=True)
    note(f"for one instance of {name}.{namespace}, once, until {_when(answer.expires_at)}; it is not shown again")
    line(answer.token)


@cert.command("show")
def show_certificates(server: Server = DEFAULT_SERVER, output: OutputOption = Output.table) -> None:
    """The roots that the mesh trusts, and every node with a certificate."""
    from proto.mesh.v1 import identity_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        answer = plane.call(plane.identity.Holders, identity_pb2.HoldersRequest())
    if output is not Output.table:
        show(_plain(answer), output)
        return
    trust = answer.trust
    note(f"trust domain {trust.trust_domain}, generation {trust.generation}")
    for root in trust.roots:
        signs = ", signs" if root.fingerprint == trust.issuing else ""
        note(f"root {root.fingerprint[:SHOWN]}, until {_when(root.not_after)}{signs}")
    table(
        ("NODE", "IDENTITY", "ROOT", "TRUST", "EXPIRES", "SERIAL"),
        [
            (
                each.node_id,
                each.identity,
                each.root[:SHOWN],
                str(each.generation) if each.generation else "not in force yet",
                _when(each.not_after),
                each.serial[:SHOWN],
            )
            for each in answer.holders
        ],
        empty="no node has a certificate",
    )


@cert.command("rotate")
def rotate(
    stage: Annotated[str, typer.Option(help="add, switch, drop, or intermediate.")],
    force: Annotated[
        bool, typer.Option("--force", help="Although nodes are not ready: their calls will fail.")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Change the root in three steps: add a new one, switch to it, drop the old one. Exit code 1 if nodes are not ready for the step."""
    from proto.mesh.v1 import identity_pb2
    from remora.client import ControlPlane

    if stage not in STAGES:
        raise UsageError(f'--stage: "{stage}" is none; known: {", ".join(STAGES)}')
    request = identity_pb2.RotateRequest(stage=identity_pb2.RotateRequest.Stage.Value(stage.upper()), force=force)
    with ControlPlane(server) as plane:
        trust = plane.call(plane.identity.Rotate, request, as_operator=True).trust
    roots = ", ".join(root.fingerprint[:SHOWN] for root in trust.roots)
    line(f"generation {trust.generation}: trusted {roots}; {trust.issuing[:SHOWN]} signs")
    raise typer.Exit(exits.DONE)


def _when(moment: "Timestamp") -> str:
    return moment.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(answer: "identity_pb2.HoldersResponse") -> dict[str, Any]:
    trust = answer.trust
    return {
        "trustDomain": trust.trust_domain,
        "generation": trust.generation,
        "roots": [
            {
                "fingerprint": root.fingerprint,
                "notAfter": root.not_after.ToJsonString(),
                "signs": root.fingerprint == trust.issuing,
            }
            for root in trust.roots
        ],
        "holders": [
            {
                "node": each.node_id,
                "identity": each.identity,
                "serial": each.serial,
                "root": each.root,
                "generation": each.generation,
                "notAfter": each.not_after.ToJsonString(),
            }
            for each in answer.holders
        ],
    }
