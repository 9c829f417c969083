"""Resources in and out: apply, get, delete, diff; their past: history, rollback."""

import difflib
import sys
from collections.abc import Iterable
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
    from proto.mesh.v1 import api_pb2, meta_pb2
    from remora.client import ControlPlane

_OUTCOMES: Final = ("unchanged", "created", "configured")
_DRY: Final = " (dry run)"
_DEFAULT_NAMESPACE: Final = "default"
_PATHS_SHOWN: Final = 3
"""Changed fields that one line of a history names."""

AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when every connected node has acknowledged it.")]
Timeout = Annotated[str, typer.Option(help="Longest time to wait.")]
NameArgument = Annotated[str, typer.Argument(help="Its name.")]
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
        request = api_pb2.ApplyRequest(resources=resources, dry_run=dry_run, by=_me())
        answer = plane.call(plane.resources.Apply, request)
        for applied in answer.applied:
            outcome = _OUTCOMES[applied.outcome] + (_DRY if dry_run else "")
            if output is Output.table:
                line(f"{_name(applied.resource)} {outcome}")
            if dry_run and outcome.startswith("configured"):
                _note_changes(applied.changes)
            _note_conditions(applied.resource)
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
    said = "; ".join(f"{each.reason}: {each.message}" for each in resource.status.conditions if _is_bad(each)) or "ok"
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
    name: NameArgument,
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
        asked = api_pb2.DeleteRequest(kind=kind, namespace=namespace, name=name, by=_me())
        answer = plane.call(plane.resources.Delete, asked)
        line(f"{kind} {namespace}/{name} deleted")
        if wait:
            _until_programmed(plane, answer.revision, timeout_s)


@app.command()
def diff(filename: File, server: Server = DEFAULT_SERVER, output: OutputOption = Output.table) -> None:
    """What `apply` would change, as a unified diff. Exit code 1 if there is a difference."""
    from control_plane.resources.dump import to_dict
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    resources = _read(filename)
    with ControlPlane(server) as plane:
        answer = plane.call(plane.resources.Diff, api_pb2.DiffRequest(resources=resources))
    if output is not Output.table:
        items = [
            {
                "kind": to_dict(each.after)["kind"],
                "namespace": each.after.metadata.namespace,
                "name": each.after.metadata.name,
                "outcome": _OUTCOMES[each.outcome],
                "changes": _plain_changes(each.changes),
            }
            for each in answer.differences
        ]
        show({"items": items}, output)
    lines: list[str] = []
    for each in answer.differences:
        name = _name(each.after)
        before = each.before if each.HasField("before") else None
        lines += _unified(before, f"stored {name}", each.after, f"given {name}")
    if lines and output is Output.table:
        line("\n".join(lines))
    raise typer.Exit(exits.NO if lines else exits.DONE)


@app.command()
def history(
    kind: KindArgument,
    name: NameArgument,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """What a resource was: who changed it, when, and what; newest first."""
    from control_plane.resources.differ import changes
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    with ControlPlane(server) as plane:
        asked = api_pb2.HistoryRequest(kind=kind, namespace=namespace, name=name)
        known = list(plane.call(plane.resources.History, asked).revisions)
    if output is not Output.table:
        show({"revisions": [_plain_revision(each) for each in known]}, output)
        return
    rows = []
    for number, each in enumerate(known):
        older = known[number + 1] if number + 1 < len(known) else None
        is_first = each.change.number == 1 or (older is not None and not older.HasField("resource"))
        if is_first or not each.HasField("resource") or older is None:
            changed = "-"
        else:
            paths = [change.path for change in changes(older.resource, each.resource)]
            rest = f" and {len(paths) - _PATHS_SHOWN} more" if len(paths) > _PATHS_SHOWN else ""
            changed = ", ".join(paths[:_PATHS_SHOWN]) + rest
        generation = str(each.resource.metadata.generation) if each.HasField("resource") else "-"
        at = each.change.time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        what = _verb(each, is_first=is_first)
        rows.append((str(each.revision), generation, at, each.change.by or "-", what, changed or "-"))
    table(("REVISION", "GENERATION", "WHEN", "WHO", "WHAT", "CHANGED"), rows, empty="nothing")


@app.command()
def rollback(
    kind: KindArgument,
    name: NameArgument,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, metavar="REVISION", help="As `history` shows it; default: the last other one."),
    ] = None,
    namespace: Namespace = _DEFAULT_NAMESPACE,
    wait: Wait = False,
    timeout: Timeout = "30s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, store nothing.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Make a resource what it was, as a change of its own; what was deleted comes back."""
    from proto.mesh.v1 import api_pb2
    from remora.client import ControlPlane

    timeout_s = seconds(timeout, "--timeout")
    with ControlPlane(server) as plane:
        asked = api_pb2.RollbackRequest(
            kind=kind, namespace=namespace, name=name, revision=to or 0, dry_run=dry_run, by=_me()
        )
        answer = plane.call(plane.resources.Rollback, asked)
        applied = answer.applied
        if applied.outcome == api_pb2.ApplyResponse.UNCHANGED:
            line(f"{_name(applied.resource)} is as it was at revision {answer.to_revision}")
        else:
            line(f"{_name(applied.resource)} rolled back to revision {answer.to_revision}{_DRY if dry_run else ''}")
            if applied.outcome == api_pb2.ApplyResponse.CONFIGURED:
                _note_changes(applied.changes)
        _note_conditions(applied.resource)
        if wait and not dry_run:
            _until_programmed(plane, answer.revision, timeout_s)


def _verb(revision: "api_pb2.Revision", *, is_first: bool) -> str:
    from proto.mesh.v1 import meta_pb2

    change = revision.change
    if change.verb == meta_pb2.Change.DELETED:
        return "deleted"
    if change.verb == meta_pb2.Change.ROLLED_BACK:
        return f"rolled back to {change.to_revision}"
    return "created" if is_first else "applied"


def _plain_revision(revision: "api_pb2.Revision") -> dict[str, Any]:
    from control_plane.resources.dump import to_dict
    from proto.mesh.v1 import meta_pb2

    change = revision.change
    shown: dict[str, Any] = {
        "revision": revision.revision,
        "time": change.time.ToJsonString(),
        "by": change.by,
        "verb": meta_pb2.Change.Verb.Name(change.verb),
    }
    if change.to_revision:
        shown["toRevision"] = change.to_revision
    if revision.HasField("resource"):
        shown["resource"] = to_dict(revision.resource)
    return shown


def _plain_changes(changes: "Iterable[api_pb2.FieldChange]") -> list[dict[str, str]]:
    return [{"path": each.path, "before": each.before, "after": each.after} for each in changes]


def _note_changes(changes: "Iterable[api_pb2.FieldChange]") -> None:
    for each in changes:
        if each.before and each.after:
            note(f"  {each.path}: {each.before} becomes {each.after}")
        else:
            note(f"  {each.path}: {each.before} is taken out" if each.before else f"  {each.path}: {each.after} is new")


def _note_conditions(resource: "api_pb2.Resource") -> None:
    for each in filter(_is_bad, resource.status.conditions):
        note(f"  {each.type} is {each.status.lower()}: {each.message} ({each.reason})")


def _is_bad(condition: "meta_pb2.Condition") -> bool:
    """True for what a user should read."""
    return (condition.status == "True") == (condition.type == "Conflicted")


def _unified(before: "api_pb2.Resource | None", was: str, after: "api_pb2.Resource", becomes: str) -> list[str]:
    """A unified diff of what a user wrote of a resource."""
    from control_plane.resources.differ import written

    one, other = (to_yaml(written(each)).splitlines() if each is not None else [] for each in (before, after))
    return list(difflib.unified_diff(one, other, was, becomes, lineterm=""))


def _me() -> str:
    """Who asks, for the history; empty if nobody knows, then the control plane takes the address."""
    import getpass
    import socket

    try:
        name = f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return ""
    return name if name.isprintable() else ""
