"""The state of the mesh: who is connected, and what each node has acknowledged."""

from typing import TYPE_CHECKING, Any

from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server
from remora.output import Output, note, show, table

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2


@app.command()
def status(server: Server = DEFAULT_SERVER, output: OutputOption = Output.table) -> None:
    """Every connected node: what it acknowledged, refused, and how long that took."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        answer = plane.call(plane.mesh.Nodes, api_pb2.NodesRequest())
    if output is not Output.table:
        shown: dict[str, Any] = {"revision": answer.revision, "nodes": [_plain(node) for node in answer.nodes]}
        if answer.HasField("stale"):
            shown["staleS"] = answer.stale.ToNanoseconds() / 1e9
        if answer.silent_replicas:
            shown["silentReplicas"] = list(answer.silent_replicas)
        if answer.held:
            shown["held"] = [
                {"service": f"{each.service}.{each.namespace}", "instances": each.instances} for each in answer.held
            ]
        show(shown, output)
        return
    note(f"control plane {server}, revision {answer.revision}, {len(answer.nodes)} nodes")
    if answer.HasField("stale"):
        note(
            f"the store has not been reached for {answer.stale.ToNanoseconds() / 1e9:.0f} s: this is the state of then, and writes are refused"
        )
    for address in answer.silent_replicas:
        note(f"the replica {address} does not answer: its nodes are missing here")
    for each in answer.held:
        name = f"{each.service}.{each.namespace}"
        note(
            f"{name}: {each.instances} instances are held, since their leases ended together with most others'; they are served while "
            f"fewer than half are healthy; `remora release {name}` lets them go"
        )
    table(
        ("NODE", "SERVICE", "VERSION", "ENGINE", "CDS", "EDS", "LDS", "RDS", "LAG", "REFUSED"),
        [_row(node) for node in answer.nodes],
        empty="no node is connected; start one with `remora run`",
    )


def _short(type_url: str) -> str:
    """`CDS` and so on."""
    names = {"Cluster": "CDS", "ClusterLoadAssignment": "EDS", "Listener": "LDS", "RouteConfiguration": "RDS"}
    return names.get(type_url.rpartition(".")[2], type_url)


def _row(node: "api_pb2.Node") -> tuple[str, ...]:
    types = {_short(item.type_url): item for item in node.types}

    def acked(name: str) -> str:
        item = types.get(name)
        if item is None:
            return "-"
        return (
            item.version_acked
            if item.version_acked == item.version_sent
            else f"{item.version_acked or '-'}<{item.version_sent}"
        )

    refused = "; ".join(
        f"{_short(item.type_url)} {item.version_nacked}: {item.nack_reason}"
        for item in node.types
        if item.version_nacked
    )
    lag = max((item.lag_ms for item in node.types), default=0.0)
    return (
        node.id,
        f"{node.service}.{node.namespace}",
        node.version or "-",
        node.engine,
        *(acked(name) for name in ("CDS", "EDS", "LDS", "RDS")),
        f"{lag:.0f} ms",
        refused or "-",
    )


def _plain(node: "api_pb2.Node") -> dict[str, Any]:
    return {
        "id": node.id,
        "service": node.service,
        "namespace": node.namespace,
        "version": node.version,
        "engine": node.engine,
        "adminAddress": node.admin_address,
        **({"replica": node.replica} if node.replica else {}),
        "types": [
            {
                "type": _short(item.type_url),
                "typeUrl": item.type_url,
                "versionSent": item.version_sent,
                "versionAcked": item.version_acked,
                "versionNacked": item.version_nacked,
                "nackReason": item.nack_reason,
                "lagMs": round(item.lag_ms, 3),
            }
            for item in node.types
        ],
    }
