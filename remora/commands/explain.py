"""What would become of a call: asked of the caller's sidecar, then of the sidecars of who would get it. No call is made."""

import asyncio
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from remora import exits
from remora.addresses import UsageError, host_port, service_name
from remora.commands.app import app
from remora.commands.failure import Failure
from remora.commands.options import DEFAULT_SERVER, Server
from remora.output import line, note

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

NO_ENGINE: Final = "runs {}, which cannot say what it would do with a call; only our sidecar can"
REFUSED: Final = "refuses"
MAX_CALLEES: Final = 5
"""Instances of a callee that are asked, and shown."""


class Form(StrEnum):
    """How it is told."""

    text = "text"
    json = "json"


@app.command()
def explain(
    caller: Annotated[
        str, typer.Argument(metavar="CALLER", help="The service that calls, or the id of one of its nodes.")
    ],
    method: Annotated[str, typer.Argument(metavar="METHOD", help="PACKAGE.SERVICE/METHOD.")],
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="NAME:VALUE", help="A header of the call; may be repeated."),
    ] = None,
    service: Annotated[
        str,
        typer.Option(
            metavar="NAME[.NAMESPACE][:PORT]", help="Who is called; else the service with the gRPC service's name."
        ),
    ] = "",
    server: Server = DEFAULT_SERVER,
    output: Annotated[Form, typer.Option("--output", "-o", help="How to print.")] = Form.text,
) -> None:
    """What would become of a call: rule, filters with their verdicts, endpoints, times. No call is made. Exit code 1 if it would be refused."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    path = "/" + method.removeprefix("/")
    if path.count("/") != 2 or path.endswith("/") or "//" in path:
        raise UsageError(f'METHOD: "{method}" is not PACKAGE.SERVICE/METHOD, such as shop.v1.Stock/Get')
    fields = [_field(text) for text in header or ()]
    with ControlPlane(server) as plane:
        nodes = list(plane.call(plane.mesh.Nodes, api_pb2.NodesRequest()).nodes)
        node = _caller(nodes, caller)
        authority = service or _callee(plane, path, node)
        found = asyncio.run(_ask(plane, nodes, node, authority, path, fields))
    if output is Form.json:
        line(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        line("\n".join(_text(found)))
    raise typer.Exit(exits.NO if found["refused"] else exits.DONE)


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f'-H: "{text}" is not NAME:VALUE, such as x-user:ann')
    return name.strip().lower(), value.strip()


def _caller(nodes: "list[api_pb2.Node]", wanted: str) -> "api_pb2.Node":
    """The node to ask. Raises Failure."""
    by_id = [node for node in nodes if node.id == wanted]
    if not by_id:
        name, namespace = service_name(wanted)
        by_id = [node for node in nodes if (node.service, node.namespace) == (name, namespace)]
    if not by_id:
        known = ", ".join(sorted({f"{node.service}.{node.namespace}" for node in nodes if node.service})) or "none"
        raise Failure(f"no node of {wanted} is connected; there are nodes of: {known}", exits.NO)
    able = [node for node in by_id if _is_ours(node)]
    if not able:
        engine = by_id[0].engine or by_id[0].client or "no sidecar"
        raise Failure(f"{by_id[0].id} {NO_ENGINE.format(engine)}", exits.NO)
    return able[0]


def _is_ours(node: "api_pb2.Node") -> bool:
    return node.engine == "remora" and bool(node.admin_address)


def _callee(plane: "ControlPlane", path: str, node: "api_pb2.Node") -> str:
    """The service that has the gRPC service's name: `shop.v1.Stock` is `stock`. Raises UsageError."""
    from proto.mesh.v1 import api_pb2

    name = path.split("/")[1].rpartition(".")[2].lower()
    declared = plane.call(plane.resources.List, api_pb2.ListRequest(kind="Service")).resources
    fitting = sorted((each.metadata.name, each.metadata.namespace) for each in declared if each.metadata.name == name)
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        here = api_pb2.ListInstancesRequest(service=name, namespace=node.namespace)
        if plane.call(plane.registry.ListInstances, here).instances:
            fitting = [(name, node.namespace)]
    own = [each for each in fitting if each[1] == node.namespace] or fitting
    if len(own) != 1:
        what = "none" if not own else "several"
        raise UsageError(f'--service: say who is called; of services named "{name}" there is {what}')
    note(f"{path} is taken as a call to {'.'.join(own[0])}; --service says otherwise")
    return ".".join(own[0])


async def _ask(
    plane: "ControlPlane",
    nodes: "list[api_pb2.Node]",
    node: "api_pb2.Node",
    authority: str,
    path: str,
    fields: list[tuple[str, str]],
) -> dict[str, Any]:
    question: dict[str, Any] = {"authority": authority, "path": path, "headers": fields}
    here = await _question(node, question)
    caller = {**(here["identity"] or {}), "secure": here["identity"] is not None, "host": "127.0.0.1"}
    callees = []
    for cluster in here["clusters"]:
        name, _, namespace = cluster["service"].partition(".")
        behind = [each for each in nodes if (each.service, each.namespace) == (name, namespace)]
        for other in behind[:MAX_CALLEES]:
            callees.append(await _at_callee(other, {**question, "direction": "inbound", "caller": caller}))
    refusing = [each for each in callees if each.get("outcome", "").startswith("refused")]
    is_refused = here["outcome"].startswith(("refused", "answered here"))
    return {
        "caller": node.id,
        "refused": is_refused or (bool(callees) and len(refusing) == len(callees)),
        **here,
        "callees": callees,
    }


async def _at_callee(node: "api_pb2.Node", question: dict[str, Any]) -> dict[str, Any]:
    if not _is_ours(node):
        return {"node": node.id, "unknown": NO_ENGINE.format(node.engine or node.client or "no sidecar")}
    try:
        return {"node": node.id, **await _question(node, question)}
    except Failure as error:
        return {"node": node.id, "unknown": str(error)}


async def _question(node: "api_pb2.Node", question: dict[str, Any]) -> dict[str, Any]:
    """A sidecar's answer. Raises Failure."""
    from remora.agent import admin

    address = host_port(node.admin_address, "admin address")
    status, text = await admin.ask(address, "/explain", "POST", body=json.dumps(question).encode())
    if status == 0:
        raise Failure(f"{node.id} does not answer at {node.admin_address}", exits.UNREACHABLE)
    if status == 404:
        raise Failure(f"the sidecar of {node.id} is of a release that cannot explain calls", exits.NO)
    answer: dict[str, Any] = json.loads(text)
    if status != 200:
        raise Failure(f"{node.id}: {answer['error']}", exits.NO)
    return answer


def _text(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"{found['method']} to {found['authority']}, from {found['caller']}"
    yield from _side(found)
    yield f"  times     {_times(found['timeouts'])}"
    yield f"  retries   {_retries(found['retries'])}"
    for mirror in found["mirrors"]:
        yield f"  copied    to {mirror['cluster']} ({mirror['share']:.1%})"
    for cluster in found["clusters"]:
        yield from _cluster(cluster)
    for callee in found["callees"]:
        yield f"at {callee['node']}" + (f": {callee['unknown']}" if "unknown" in callee else "")
        if "unknown" not in callee:
            yield from _side(callee)
    yield f"=> {found['outcome']}" + (
        "; refused there by every instance" if found["refused"] and found["outcome"].startswith("goes") else ""
    )


def _side(side: dict[str, Any]) -> Iterator[str]:
    route = side["route"]
    if route is None:
        yield "  route     none"
    elif not route["number"]:
        yield f"  route     none of {route['virtualHost']} fits"
    else:
        name = f' "{route["name"]}"' if route["name"] else ""
        yield f"  route     {route['virtualHost']} rule {route['number']}{name}: {route['rule']}"
    told = [item for item in side["filters"] if item["kind"]]
    for item in told:
        what = item["kind"]
        yield f"  filter    {what}: {item['verdict']}" + (f" ({item['why']})" if item["why"] else "")
    if not told:
        yield "  filter    none has a part in it"


def _cluster(cluster: dict[str, Any]) -> Iterator[str]:
    share = "" if cluster["share"] == 1 else f" {cluster['share']:.1%}"
    why = f" ({cluster['why']})" if cluster["why"] else ""
    yield f"  to        {cluster['service']}{share}: {cluster['verdict']}{why}, {cluster['balancing']}"
    used = [f"{name} {cluster[name]['active']}/{cluster[name]['limit']}" for name in ("requests", "pending")]
    budget = cluster["retryBudget"]
    rule = f" ({budget['rule']})" if budget["rule"] else ""
    used.append(f"retries left {budget['left']}{rule}")
    breaker = [f"breaker {cluster['breaker']}"] if cluster["breaker"] else []
    yield f"            {', '.join([*used, *breaker])}"
    for each in cluster["endpoints"]:
        words = [each["health"], f"weight {each['weight']}", f"active {each['active']}", each["over"].replace("_", " ")]
        if each["version"]:
            words.append(f"version {each['version']}")
        if each["ejected"]:
            words.append(f"ejected for {each.get('ejectedForS', 0):g} s more")
        if each["failingCheck"]:
            words.append("fails its health check")
        yield f"            {each['address']}  {', '.join(words)}"


def _times(times: dict[str, float]) -> str:
    names = (("deadlineS", "deadline"), ("requestS", "request"), ("perTryS", "one try"), ("idleS", "idle"))
    return ", ".join(f"{word} {times[key]:g} s" for key, word in names if times[key]) or "none"


def _retries(retries: dict[str, Any] | None) -> str:
    if retries is None:
        return "none"
    told = [f"up to {retries['most']} on {', '.join(retries['on'])}"] if retries["most"] and retries["on"] else []
    if retries["hedges"]:
        told.append(f"{retries['hedges']} more beside one without an answer for {retries['hedgeDelayS']:g} s")
    return "; ".join(told) or "none"
