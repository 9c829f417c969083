"""The state of the mesh: who is connected, and what each node has acknowledged."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server
from remora.output import Output, line, note, show, table

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2

_NODES_SHOWN: Final = 3


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
    rows = _not_enforced(answer.nodes)
    if rows:
        line("")
        table(("NOT ENFORCED", "FIELD", "NODES", "WHY"), rows, empty="")


def _short(type_url: str) -> str:
    """`CDS` and so on."""
    names = {"Cluster": "CDS", "ClusterLoadAssignment": "EDS", "Listener": "LDS", "RouteConfiguration": "RDS"}
    return names.get(type_url.rpartition(".")[2], type_url)


def _not_enforced(nodes: "Iterable[api_pb2.Node]") -> list[tuple[str, ...]]:
    """What nodes do not enforce of policies, each thing once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        for each in node.not_enforced:
            found.setdefault((each.policy, each.field, each.reason), []).append(node.id)
    rows: list[tuple[str, ...]] = []
    for (policy, field, reason), ids in sorted(found.items()):
        rest = f" and {len(ids) - _NODES_SHOWN} more" if len(ids) > _NODES_SHOWN else ""
        rows.append((policy, field, ", ".join(ids[:_NODES_SHOWN]) + rest, reason))
    return rows


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
        "client": node.client,
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
        "notEnforced": [
            {"policy": each.policy, "field": each.field, "reason": each.reason} for each in node.not_enforced
        ],
    }
