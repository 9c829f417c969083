"""Routes by hand: a service's calls shared out among its versions, and a canary that is promoted or taken back."""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final

import typer

from remora import exits
from remora.addresses import UsageError, seconds, service_name
from remora.canary import FAILURES, Counts, Promotion, Verdict, since
from remora.commands.app import app
from remora.commands.failure import Failure
from remora.commands.options import DEFAULT_SERVER, Server, Service
from remora.commands.resources import _me, _note_conditions, _until_programmed
from remora.output import line, note

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

route = typer.Typer(help="Routes: a service's calls shared out among its versions.", no_args_is_help=True)
app.add_typer(route, name="route")

MAX_VERSIONS: Final = 16
MAX_WEIGHT: Final = 1_000_000
MAX_PROMOTED: Final = 500
"""Of a weight, so that all weights of all steps are whole numbers that a route may have."""
PROGRAMMED_S: Final = 30.0
POLL_S: Final = 0.5
"""How often callers are asked while there are too few calls to tell."""
_MADE_BY: Final = "remora.dev/route-split"
_SHARE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)=([0-9]{1,7})")


@route.command()
def split(
    service: Service,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT…", help="Such as v1=90 v2=10.")],
    promote: Annotated[
        bool, typer.Option("--promote", help="Give the last version more and more, as long as its calls succeed.")
    ] = False,
    abort_below: Annotated[
        str, typer.Option(metavar="PERCENT", help="With a smaller share of good calls it is taken back.")
    ] = "99%",
    step: Annotated[int, typer.Option(min=1, max=100, help="Points of 100 that a step is.")] = 10,
    every: Annotated[str, typer.Option(help="Time between steps.")] = "10s",
    minimum_calls: Annotated[int, typer.Option(min=1, help="Fewer calls since the last step decide nothing.")] = 20,
    timeout: Annotated[str, typer.Option(help="Longest time until it is promoted; then it is taken back.")] = "30m",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Share a service's calls out among its versions. With --promote exit code 1 if it was taken back, 4 if the time was over."""
    from remora.client import ControlPlane

    weights = _weights(shares)
    threshold, every_s, timeout_s = _percent(abort_below), seconds(every, "--every"), seconds(timeout, "--timeout")
    if promote and (len(weights) < 2 or not sum(list(weights.values())[:-1])):
        raise UsageError("--promote: a version besides the last must have calls, for them to go back to")
    if promote and max(weights.values()) > MAX_PROMOTED:
        raise UsageError(f"--promote: weights of at most {MAX_PROMOTED} are taken, such as 90 and 10")
    with ControlPlane(server) as plane:
        target = _Split(plane, *service_name(service))
        target.begin(weights)
        if not promote:
            return
        promotion = Promotion(weights, threshold, step, minimum_calls)
        try:
            verdict = _promote(target, promotion, every_s, time.monotonic() + timeout_s)
        except KeyboardInterrupt:
            note(f"interrupted: the weights stay at {_said(promotion.weights)}")
            raise
    if verdict is not Verdict.DONE:
        raise typer.Exit(exits.NO if verdict is Verdict.ABORT else exits.TIME_OVER)


def _weights(shares: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in shares:
        match = _SHARE.fullmatch(text)
        if match is None or int(match[3]) > MAX_WEIGHT:
            raise UsageError(f'"{text}" is not VERSION=WEIGHT, such as v1=90')
        if match[1] in found:
            raise UsageError(f"version {match[1]} stands twice")
        found[match[1]] = int(match[3])
    if len(found) > MAX_VERSIONS:
        raise UsageError(f"{len(found)} versions; at most {MAX_VERSIONS} are taken")
    if not sum(found.values()):
        raise UsageError("the weights add up to 0; give at least one version a weight above 0")
    return found


def _percent(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]+)?)%?", text)
    if match is None or float(match[1]) > 100.0:
        raise UsageError(f'--abort-below: "{text}" is no percentage, such as 99%')
    return float(match[1])


def _said(weights: Mapping[str, int]) -> str:
    total = sum(weights.values())
    return ", ".join(f"{version} {100 * weight / total:g} %" for version, weight in weights.items())


class _Split:
    """The route of a service that is shared out, and the services behind it, one for each version."""

    def __init__(self, plane: "ControlPlane", name: str, namespace: str) -> None:
        self.plane = plane
        self.name = name
        self.namespace = namespace

    def backend(self, version: str) -> str:
        """The name of the service that is one version."""
        return f"{self.name}-{re.sub('[^a-z0-9]+', '-', version.lower())}"

    def begin(self, weights: Mapping[str, int]) -> None:
        """Declare the versions' services and the route. Raises Failure if others have a say in it."""
        from proto.mesh.v1 import api_pb2, meta_pb2, service_pb2

        if len({self.backend(version) for version in weights}) < len(weights):
            raise UsageError("two versions would have the same name as services")
        self._refuse_others()
        here = api_pb2.ListRequest(kind="Service", namespace=self.namespace)
        declared = {each.metadata.name: each for each in self.plane.call(self.plane.resources.List, here).resources}
        instances = self.plane.call(
            self.plane.registry.ListInstances,
            api_pb2.ListInstancesRequest(service=self.name, namespace=self.namespace),
        ).instances
        made = []
        for version, weight in weights.items():
            backend, selector = self.backend(version), {"service": self.name, "version": version}
            known = declared.get(backend)
            if known is not None and dict(known.service.selector) != selector:
                text = (
                    f'Service "{backend}" is there already, and is something else than version {version} of {self.name}'
                )
                raise Failure(text, exits.NO)
            if known is None:
                metadata = meta_pb2.Metadata(name=backend, namespace=self.namespace, annotations={_MADE_BY: self.name})
                made.append(api_pb2.Resource(metadata=metadata, service=service_pb2.ServiceSpec(selector=selector)))
            if weight and all(each.version != version for each in instances):
                note(f"no instance of {self.name}.{self.namespace} has the version {version}: its calls will fail")
        self._store([*made, self._route(weights)])
        line(f"{self.name}.{self.namespace}: {_said(weights)}")

    def share(self, weights: Mapping[str, int]) -> None:
        """From now on by these weights."""
        self._store([self._route(weights)])

    def _refuse_others(self) -> None:
        from proto.mesh.v1 import api_pb2

        for each in self.plane.call(self.plane.resources.List, api_pb2.ListRequest(kind="GRPCRoute")).resources:
            parents = {(ref.name, ref.namespace or each.metadata.namespace) for ref in each.grpc_route.parent_refs}
            mine = (each.metadata.name, each.metadata.namespace) == (self._route_name, self.namespace)
            if (self.name, self.namespace) in parents and not mine:
                name = f"{each.metadata.name}.{each.metadata.namespace}"
                raise Failure(f'GRPCRoute "{name}" steers {self.name} already; change or delete it', exits.NO)
            if mine and _MADE_BY not in each.metadata.annotations:
                text = f'GRPCRoute "{self._route_name}" is there already and was not made by `remora route split`'
                raise Failure(text, exits.NO)

    @property
    def _route_name(self) -> str:
        return f"{self.name}-split"

    def _route(self, weights: Mapping[str, int]) -> "api_pb2.Resource":
        from proto.mesh.v1 import api_pb2, meta_pb2, route_pb2

        metadata = meta_pb2.Metadata(name=self._route_name, namespace=self.namespace, annotations={_MADE_BY: self.name})
        refs = [route_pb2.BackendRef(name=self.backend(version), weight=weight) for version, weight in weights.items()]
        spec = route_pb2.GRPCRouteSpec(
            parent_refs=[route_pb2.ParentReference(name=self.name)],
            rules=[route_pb2.GRPCRouteRule(backend_refs=refs)],
        )
        return api_pb2.Resource(metadata=metadata, grpc_route=spec)

    def _store(self, resources: "list[api_pb2.Resource]") -> None:
        from proto.mesh.v1 import api_pb2

        answer = self.plane.call(self.plane.resources.Apply, api_pb2.ApplyRequest(resources=resources, by=_me()))
        for applied in answer.applied:
            _note_conditions(applied.resource)
        _until_programmed(self.plane, answer.revision, PROGRAMMED_S)

    def counts(self, version: str) -> dict[str, Counts]:
        """Calls of a version so far, by caller: as our sidecars count them."""
        ours = [node for node in self._nodes() if node.engine == "remora" and node.admin_address]
        return asyncio.run(_counts(ours, f"{self.backend(version)}.{self.namespace}"))

    def uncounted(self) -> list[str]:
        """Nodes that may call and are not asked."""
        return sorted(node.id for node in self._nodes() if node.engine != "remora" or not node.admin_address)

    def _nodes(self) -> "list[api_pb2.Node]":
        from proto.mesh.v1 import api_pb2

        return list(self.plane.call(self.plane.mesh.Nodes, api_pb2.NodesRequest()).nodes)


async def _counts(nodes: "list[api_pb2.Node]", service: str) -> dict[str, Counts]:
    from remora.addresses import host_port
    from remora.agent import admin

    addresses = [host_port(node.admin_address, "admin address") for node in nodes]
    answers = await asyncio.gather(*(admin.ask(address, "/stats/prometheus") for address in addresses))
    return {node.id: _read(text, service) for node, (status, text) in zip(nodes, answers, strict=True) if status == 200}


def _read(text: str, service: str) -> Counts:
    from prometheus_client.parser import text_string_to_metric_families

    calls = failures = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if (
                sample.name != "remora_requests_total"
                or labels["direction"] != "outbound"
                or labels["service"] != service
            ):
                continue
            calls += int(sample.value)
            failures += int(sample.value) if labels["grpc_status"] in FAILURES else 0
    return Counts(calls, failures)


def _promote(target: _Split, promotion: Promotion, every_s: float, end: float) -> Verdict:
    """Step by step to all calls, or back."""
    canary = promotion.canary
    if uncounted := target.uncounted():
        note(f"calls of {', '.join(uncounted)} are not counted: only our sidecars say how they ended")
    before = target.counts(canary)
    while True:
        look_at = time.monotonic() + every_s
        verdict = Verdict.WAIT
        while verdict is Verdict.WAIT:
            if time.monotonic() > end:
                promotion.go_back()
                target.share(promotion.weights)
                note(f"the time was over before {canary} was promoted: taken back")
                return Verdict.WAIT
            time.sleep(min(POLL_S, max(0.0, look_at - time.monotonic())) or POLL_S)
            if time.monotonic() < look_at:
                continue
            now = target.counts(canary)
            seen = since(before, now)
            verdict = promotion.judge(seen)
        said = f"{seen.success_percent:.2f} % of {seen.calls} calls of {canary} were good"
        if verdict is not Verdict.DONE:
            target.share(promotion.weights)
        if verdict is Verdict.ABORT:
            line(f"{said}, less than {promotion.abort_below:g} %: taken back, {_said(promotion.weights)}")
            return verdict
        line(f"{said}: {_said(promotion.weights)}" + (", promoted" if verdict is Verdict.DONE else ""))
        if verdict is Verdict.DONE:
            return verdict
        before = target.counts(canary)
