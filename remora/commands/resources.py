"""Resources in and out: apply, get, delete, diff."""

import difflib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from remora import exits
from remora.addresses import UsageError, seconds
from remora.commands.app import app
from remora.commands.options import DEFAULT_SERVER, File, Namespace, OutputOption, Server
from remora.output import Output, line, note, show, table, to_yaml

if TYPE_CHECKING:
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

_OUTCOMES: Final = ("unchanged", "created", "configured")
_DEFAULT_NAMESPACE: Final = "default"

AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when every connected node has acknowledged it.")]
Timeout = Annotated[str, typer.Option(help="Longest time to wait.")]
KindArgument = Annotated[str, typer.Argument(metavar="KIND", help="Such as GRPCRoute, grpcroutes or all.")]


def _read(files: list[str]) -> "list[api_pb2.Resource]":
    """The resources of all files. Raises Failure with every fault, UsageError for a file that cannot be read."""
    from control_plane.resources.errors import InvalidResource
    from control_plane.resources.load import load
    from remora.commands.failure import Failure

    found: list[api_pb2.Resource] = []
    faults: list[str] = []
    for name in files:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "is no UTF-8 text"
            raise UsageError(f"-f {name}: {reason}") from None
        try:
            found += load(text, "standard input" if name == "-" else name)
        except InvalidResource as error:
            faults += error.faults
    if faults:
        raise Failure("nothing was applied:\n  " + "\n  ".join(faults), exits.BAD_INPUT)
    return found


def _until_programmed(plane: "ControlPlane", revision: int, timeout_s: float) -> None:
    """Wait for every connected node to acknowledge a revision. Raises Failure, which names those that have not."""
    from proto.mesh.v1 import api_pb2
    from remora.client import CALL_TIMEOUT_S

    request = api_pb2.WaitProgrammedRequest(revision=revision)
    request.timeout.FromNanoseconds(int(timeout_s * 1e9))
    done = plane.call(plane.resources.WaitProgrammed, request, timeout_s + CALL_TIMEOUT_S)
    note(f"acknowledged by {done.nodes} of {done.nodes} nodes at revision {revision}")


def _name(resource: "api_pb2.Resource") -> str:
    from control_plane.resources import kinds

    return kinds.describe(resource)


@app.command()
def apply(
    filename: File,
    wait: Wait = False,
    timeout: Timeout = "30s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """Store the resources of files: all of them, in one transaction, or none."""
    from control_plane.resources.dump import to_dict
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    timeout_s = seconds(timeout, "--timeout")
    resources = _read(filename)
    with ControlPlane(server) as plane:
        answer = plane.call(plane.resources.Apply, api_pb2.ApplyRequest(resources=resources, dry_run=dry_run))
        for applied in answer.applied:
            outcome = _OUTCOMES[applied.outcome] + (" (dry run)" if dry_run else "")
            if output is Output.table:
                line(f"{_name(applied.resource)} {outcome}")
            for condition in applied.resource.status.conditions:
                if condition.status == "False":
                    note(f"  {condition.type} is false: {condition.message} ({condition.reason})")
        if output is not Output.table:
            show({"items": [to_dict(applied.resource) for applied in answer.applied]}, output)
        if wait and not dry_run:
            _until_programmed(plane, answer.revision, timeout_s)


@app.command()
def get(
    kind: KindArgument,
    name: Annotated[str | None, typer.Argument(help="One resource; all of the kind if left out.")] = None,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    all_namespaces: AllNamespaces = False,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """Show resources with their status."""
    from control_plane.resources.dump import to_dict
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        if name is not None:
            asked = api_pb2.GetRequest(kind=kind, namespace=namespace, name=name)
            found = [plane.call(plane.resources.Get, asked)]
        else:
            listed = api_pb2.ListRequest(
                kind="" if kind == "all" else kind, namespace="" if all_namespaces else namespace
            )
            found = list(plane.call(plane.resources.List, listed).resources)
    if output is not Output.table:
        show(to_dict(found[0]) if name is not None else {"items": [to_dict(item) for item in found]}, output)
        return
    where = "" if all_namespaces else f" in namespace {namespace}"
    table(
        ("KIND", "NAMESPACE", "NAME", "GENERATION", "AGE", "STATUS"),
        [_row(item) for item in found],
        empty=f"no {'resources' if kind == 'all' else kind}{where}",
    )


def _row(resource: "api_pb2.Resource") -> tuple[str, ...]:
    from control_plane.resources import kinds

    metadata = resource.metadata
    false = [condition for condition in resource.status.conditions if condition.status != "True"]
    said = "; ".join(f"{condition.reason}: {condition.message}" for condition in false) or "ok"
    age = datetime.now(UTC) - metadata.creation_timestamp.ToDatetime(UTC)
    return (
        kinds.of(resource).name,
        metadata.namespace,
        metadata.name,
        str(metadata.generation),
        _age(age.total_seconds()),
        said,
    )


def _age(seconds_ago: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds_ago >= 2 * length:
            return f"{int(seconds_ago / length)}{unit}"
    return f"{max(0, int(seconds_ago))}s"


@app.command()
def delete(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Its name.")],
    namespace: Namespace = _DEFAULT_NAMESPACE,
    wait: Wait = False,
    timeout: Timeout = "30s",
    server: Server = DEFAULT_SERVER,
) -> None:
    """Remove a resource."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    timeout_s = seconds(timeout, "--timeout")
    with ControlPlane(server) as plane:
        asked = api_pb2.DeleteRequest(kind=kind, namespace=namespace, name=name)
        answer = plane.call(plane.resources.Delete, asked)
        line(f"{kind} {namespace}/{name} deleted")
        if wait:
            _until_programmed(plane, answer.revision, timeout_s)


@app.command()
def diff(filename: File, server: Server = DEFAULT_SERVER) -> None:
    """What `apply` would change, as a unified diff. Exit code 1 if there is a difference."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    resources = _read(filename)
    lines: list[str] = []
    with ControlPlane(server) as plane:
        plane.call(plane.resources.Apply, api_pb2.ApplyRequest(resources=resources, dry_run=True))
        stored = {_name(item): item for item in plane.call(plane.resources.List, api_pb2.ListRequest()).resources}
    for resource in resources:
        name = _name(resource)
        before = _plain(stored[name]) if name in stored else ""
        lines += difflib.unified_diff(
            before.splitlines(), _plain(resource).splitlines(), f"stored {name}", f"given {name}", lineterm=""
        )
    if lines:
        line("\n".join(lines))
    raise typer.Exit(exits.NO if lines else exits.DONE)


def _plain(resource: "api_pb2.Resource") -> str:
    """What a user wrote of a resource: no status, nothing that the control plane counts."""
    from control_plane.resources.dump import to_dict

    shown: dict[str, Any] = to_dict(resource)
    shown.pop("status", None)
    for counted in ("generation", "resourceVersion", "creationTimestamp"):
        shown["metadata"].pop(counted, None)
    return to_yaml(shown)
