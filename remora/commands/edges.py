"""Who calls whom, and what over: asked of every connected sidecar."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from remora import exits
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server
from remora.output import Output, note, show, table

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2

OUTSIDE: Final = "(no identity)"
MUTUAL_TLS: Final = "mTLS"
PLAIN_TEXT: Final = "plain text"
_WORDS: Final = {"mutual_tls": MUTUAL_TLS, "tls": "TLS", "": PLAIN_TEXT}
_ENVOY: Final = re.compile(r"cluster\.outbound\|(\S+?)\.(upstream_rq_total|upstream_cx_total|ssl\.handshake): (\d+)")

Edge = tuple[str, str, str]
"""Caller, callee, what over."""


@app.command()
def edges(
    only_plain: Annotated[
        bool, typer.Option("--plain-text", help="Only those that are not mutual TLS; exit code 1 if there is any.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """Who calls whom in the mesh, how often since the sidecars started, and whether by mutual TLS."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        nodes = list(plane.call(plane.mesh.Nodes, api_pb2.NodesRequest()).nodes)
    found, silent = asyncio.run(_look(nodes))
    rows = [(*edge, count) for edge, count in sorted(found.items()) if not only_plain or edge[2] != MUTUAL_TLS]
    for node in silent:
        note(f"{node} does not answer: what it calls is not shown")
    if output is not Output.table:
        names = ("caller", "callee", "over", "calls")
        show({"edges": [dict(zip(names, row, strict=True)) for row in rows]}, output)
    else:
        table(
            ("CALLER", "CALLEE", "OVER", "CALLS"),
            [tuple(map(str, row)) for row in rows],
            empty="no calls yet" if not only_plain else "every call goes by mutual TLS",
        )
    raise typer.Exit(exits.NO if only_plain and rows else exits.DONE)


async def _look(nodes: "list[api_pb2.Node]") -> tuple[Counter[Edge], list[str]]:
    """The edges, and the nodes that did not answer."""
    from remora.addresses import host_port
    from remora.agent import admin

    async def ask(node: "api_pb2.Node") -> tuple[int, str]:
        path = "/stats?filter=^cluster.outbound" if node.engine == "envoy" else "/stats/prometheus"
        return await admin.ask(host_port(node.admin_address, "admin address"), path)

    sidecars = [node for node in nodes if node.admin_address]
    found: Counter[Edge] = Counter()
    silent: list[str] = []
    for node, (status, text) in zip(sidecars, await asyncio.gather(*map(ask, sidecars)), strict=True):
        name = f"{node.service}.{node.namespace}"
        if status != 200:
            silent.append(node.id)
            continue
        for edge, count in (_of_envoy if node.engine == "envoy" else _of_remora)(name, text):
            found[edge] += count
    return found, silent


def _of_remora(name: str, text: str) -> Iterator[tuple[Edge, int]]:
    """What our sidecar says: of its own calls, and of those who came without an identity, whom nobody else tells of."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, count = sample.labels, int(sample.value)
            if not count:
                continue
            security = _WORDS.get(labels.get("security", ""), PLAIN_TEXT)
            if sample.name == "remora_requests_total" and labels["direction"] == "outbound" and labels["service"]:
                yield (name, labels["service"], security), count
            elif sample.name == "remora_peer_calls_total" and not labels["peer"]:
                yield (OUTSIDE, name, security), count


def _of_envoy(name: str, text: str) -> Iterator[tuple[Edge, int]]:
    """Envoy counts handshakes and connections of a cluster, not what each call went over."""
    counts: dict[str, Counter[str]] = {}
    for callee, what, count in _ENVOY.findall(text):
        counts.setdefault(callee, Counter())[what] += int(count)
    for callee, found in counts.items():
        if not found["upstream_rq_total"]:
            continue
        secure = found["ssl.handshake"]
        is_mixed = 0 < secure < found["upstream_cx_total"]
        over = f"{MUTUAL_TLS} and {PLAIN_TEXT}" if is_mixed else MUTUAL_TLS if secure else PLAIN_TEXT
        yield (name, callee, over), found["upstream_rq_total"]
