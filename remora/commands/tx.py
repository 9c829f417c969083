"""Transactions across services: what the coordinator knows of them, and what a person may do about one."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from remora import exits
from remora.addresses import UsageError, host_port, seconds, service_name
from remora.commands.app import app
from remora.commands.failure import Failure
from remora.commands.options import DEFAULT_SERVER, OutputOption, Server
from remora.output import Output, line, note, show, table

if TYPE_CHECKING:
    from proto.transactions.v1 import coordinator_pb2 as pb

tx = typer.Typer(help="Transactions across services, as their coordinator knows them.", no_args_is_help=True)
app.add_typer(tx, name="tx")

CALL_TIMEOUT_S: Final = 10.0
PAGE: Final = 1000
TOO_OLD: Final = "60s"
_EXITS: Final = {
    "NOT_FOUND": exits.NO,
    "FAILED_PRECONDITION": exits.NO,
    "PERMISSION_DENIED": exits.NO,
    "INVALID_ARGUMENT": exits.BAD_INPUT,
    "UNAVAILABLE": exits.UNREACHABLE,
    "DEADLINE_EXCEEDED": exits.TIME_OVER,
}
_ENDS: Final = ("SUCCEEDED", "FAILED")

Coordinator = Annotated[
    str,
    typer.Option(
        "--coordinator",
        envvar="REMORA_TRANSACTIONS",
        metavar="HOST:PORT|NAME[.NAMESPACE]",
        help="Its address, or the service that it is in the mesh.",
    ),
]
DEFAULT_COORDINATOR: Final = "transactions.shop"
Gid = Annotated[str, typer.Argument(metavar="GID", help="The transaction.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, and who says so; kept with the transaction.")]


class _Api:
    """The coordinator; used as a context manager. Failures are raised as Failure."""

    def __init__(self, coordinator: str, server: str) -> None:
        import grpc

        from proto.transactions.v1 import coordinator_pb2_grpc

        self._is_registered = ":" not in coordinator
        self.address = coordinator if ":" in coordinator else _registered(coordinator, server)
        host_port(self.address, "--coordinator")
        self._channel = grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)])
        self.stub = coordinator_pb2_grpc.CoordinatorStub(self._channel)

    def __enter__(self) -> "_Api":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: Any, request: Any) -> Any:
        import grpc

        try:
            return method(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            failed: Any = error
            name = failed.code().name
            text = failed.details()
            if name == "UNAVAILABLE":
                text = f"the coordinator at {self.address} cannot be reached; is it running? ({text})"
                if self._is_registered:
                    text += (
                        "; if its sidecar wants a certificate, say with --coordinator where the program itself listens"
                    )
            raise Failure(text, _EXITS.get(name, exits.NO)) from None

    def all(self, request: "pb.ListRequest", most: int) -> "list[pb.Transaction]":
        """Page by page."""
        found: list[pb.Transaction] = []
        while len(found) < most:
            request.limit = min(PAGE, most - len(found))
            answer = self.call(self.stub.List, request)
            found += answer.transactions
            request.after = answer.next
            if not answer.next:
                break
        return found


def _registered(service: str, server: str) -> str:
    """The address of an instance of the coordinator."""
    from proto.mesh.v1 import api_pb2, service_pb2
    from remora.client import ControlPlane

    name, namespace = service_name(service)
    with ControlPlane(server) as plane:
        asked = api_pb2.ListInstancesRequest(service=name, namespace=namespace)
        found = plane.call(plane.registry.ListInstances, asked).instances
    for each in found:
        if each.health == service_pb2.HEALTHY:
            return f"{each.address}:{each.port}"
    raise Failure(
        f"no instance of {name}.{namespace} is healthy; say with --coordinator where it is", exits.UNREACHABLE
    )


@tx.command("list")
def list_(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only these, such as RUNNING; may be repeated.")
    ] = None,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only dead letters: those that a person should look at.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 100,
    coordinator: Coordinator = DEFAULT_COORDINATOR,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """Transactions, by gid."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    known = list(pb.State.keys())[1:]
    for each in state or ():
        if each.upper() not in known:
            raise UsageError(f'--state: "{each}" is no state; one of {", ".join(known)} is')
    with _Api(coordinator, server) as api:
        states = [pb.State.Value(each.upper()) for each in state or ()]
        found = api.all(pb.ListRequest(states=states, only_dead_letters=dead), limit)
    if output is not Output.table:
        show({"transactions": [_plain(each) for each in found]}, output)
        return
    columns = ("GID", "MODE", "STATE", "DONE", "BEGAN", "TOOK", "WHY")
    table(columns, [_row(each) for each in found], empty="no transactions")


@tx.command("show")
def show_(
    gid: Gid,
    coordinator: Coordinator = DEFAULT_COORDINATOR,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """One transaction: its branches, and what happened when."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    with _Api(coordinator, server) as api:
        found = api.call(api.stub.Query, pb.QueryRequest(gid=gid))
    if output is not Output.table:
        show(_plain(found), output)
        return
    note(f"{found.gid}: {_mode(found)}, {_state(found)}{f' ({found.reason})' if found.reason else ''}")
    rows = [
        (
            branch.name,
            _branch_state(progress),
            str(progress.attempts or "-"),
            _targets(branch),
            progress.last_error or "-",
        )
        for branch, progress in zip(found.branches, found.progress, strict=True)
    ]
    table(("BRANCH", "STATE", "FAILED", "CALLS", "LAST ERROR"), rows, empty="no branches")
    line("")
    events = [
        (
            f"+{each.at - found.created_at:.3f} s",
            each.what,
            "/".join(filter(None, (each.branch, each.op))),
            each.message,
        )
        for each in found.events
    ]
    table(("WHEN", "WHAT", "BRANCH", ""), events, empty="nothing is written down of what happened")


@tx.command()
def graph(
    gid: Gid,
    coordinator: Coordinator = DEFAULT_COORDINATOR,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """The branches in the order in which they wait for each other, as a Mermaid picture."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    with _Api(coordinator, server) as api:
        found = api.call(api.stub.Query, pb.QueryRequest(gid=gid))
    if output is not Output.table:
        nodes = [{"name": each.name, "after": list(each.after)} for each in found.branches]
        show({"gid": found.gid, "branches": nodes}, output)
        return
    for each in picture(found):
        line(each)


@tx.command()
def retry(gid: Gid, coordinator: Coordinator = DEFAULT_COORDINATOR, server: Server = DEFAULT_SERVER) -> None:
    """Call now the branches that wait out a back-off."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    with _Api(coordinator, server) as api:
        found = api.call(api.stub.Retry, pb.RetryRequest(gid=gid))
    note(f"{gid}: {_state(found)}")


@tx.command()
def abort(
    gid: Gid,
    reason: Reason = "aborted by hand",
    coordinator: Coordinator = DEFAULT_COORDINATOR,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take back a transaction that is not decided."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    with _Api(coordinator, server) as api:
        found = api.call(api.stub.Abort, pb.AbortRequest(gid=gid, reason=reason, wait_s=2))
    note(f"{gid}: {_state(found)}")


@tx.command()
def force(
    gid: Gid, reason: Reason, coordinator: Coordinator = DEFAULT_COORDINATOR, server: Server = DEFAULT_SERVER
) -> None:
    """End a decided transaction without calling anybody any more: a person has seen to its branches."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    with _Api(coordinator, server) as api:
        found = api.call(api.stub.Force, pb.ForceRequest(gid=gid, reason=reason))
    note(f"{gid}: {_state(found)}")


@tx.command()
def audit(
    older: Annotated[str, typer.Option("--older", help="A transaction may be open for so long.")] = TOO_OLD,
    coordinator: Coordinator = DEFAULT_COORDINATOR,
    server: Server = DEFAULT_SERVER,
    output: OutputOption = Output.table,
) -> None:
    """Count transactions by mode and state. Exit code 1 if one hangs, is a dead letter, or was ended by force."""
    from proto.transactions.v1 import coordinator_pb2 as pb

    longest_s = seconds(older, "--older")
    with _Api(coordinator, server) as api:
        found = api.all(pb.ListRequest(), 1_000_000)
    now = time.time()
    counts: dict[tuple[str, str], int] = {}
    wrong: list[str] = []
    for each in found:
        key = (_mode(each), _state(each))
        counts[key] = counts.get(key, 0) + 1
        wrong += [f"{each.gid}: {text}" for text in complaints(each, now, longest_s)]
    if output is not Output.table:
        plain = [{"mode": mode, "state": state, "count": count} for (mode, state), count in sorted(counts.items())]
        show({"transactions": plain, "wrong": wrong}, output)
    else:
        rows = [(mode, state, f"{count:,}") for (mode, state), count in sorted(counts.items())]
        table(("MODE", "STATE", "COUNT"), rows, empty="no transactions")
        for text in wrong:
            note(f"wrong: {text}")
    raise typer.Exit(exits.NO if wrong else exits.DONE)


@tx.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def coordinator(context: typer.Context) -> None:
    """Run the coordinator in the foreground, with its log also in the mesh's store: --log DIR or etcd://H:P,H:P."""
    from remora.coordinator import run

    raise typer.Exit(run(context.args))


def complaints(each: "pb.Transaction", now: float, longest_s: float) -> list[str]:
    """What is wrong with a transaction, as far as the coordinator's log tells."""
    found: list[str] = []
    if _state(each) not in _ENDS and now - each.created_at > longest_s:
        found.append(f"{_state(each)} for {now - each.created_at:.0f} s; see `remora tx show {each.gid}`")
    if each.is_dead_letter:
        found.append("a dead letter: a branch fails again and again; `remora tx retry` once it can work")
    if each.reason.startswith("forced:"):
        found.append(f"ended by {each.reason}")
    return found


def picture(each: "pb.Transaction") -> list[str]:
    """Lines of Mermaid."""
    lines = ["flowchart LR"]
    numbers = {branch.name: f"b{number}" for number, branch in enumerate(each.branches)}
    for branch, progress in zip(each.branches, each.progress, strict=True):
        lines.append(f'    {numbers[branch.name]}["{branch.name}: {_branch_state(progress)}"]')
        lines += [f"    {numbers[before]} --> {numbers[branch.name]}" for before in branch.after]
    return lines


def _row(each: "pb.Transaction") -> tuple[str, ...]:
    settled = sum(_branch_state(progress) in ("DONE", "FINISHED", "UNDONE") for progress in each.progress)
    took = f"{(each.ended_at - each.created_at) * 1000:.0f} ms" if each.ended_at else "-"
    state = f"{_state(each)} (dead letter)" if each.is_dead_letter else _state(each)
    began = time.strftime("%H:%M:%S", time.localtime(each.created_at))
    return each.gid, _mode(each), state, f"{settled}/{len(each.branches)}", began, took, each.reason or "-"


def _targets(branch: "pb.Branch") -> str:
    """The methods of a branch, in the order of its life."""
    calls = [branch.forward.target, branch.finish.target, branch.undo.target]
    return ", ".join(dict.fromkeys(each.removeprefix("grpc://") for each in calls if each))


def _mode(each: "pb.Transaction") -> str:
    from proto.transactions.v1 import coordinator_pb2 as pb

    return pb.Mode.Name(each.mode)


def _state(each: "pb.Transaction") -> str:
    from proto.transactions.v1 import coordinator_pb2 as pb

    return pb.State.Name(each.state)


def _branch_state(progress: "pb.Progress") -> str:
    from proto.transactions.v1 import coordinator_pb2 as pb

    return pb.BranchState.Name(progress.state)


def _plain(each: "pb.Transaction") -> dict[str, Any]:
    return {
        "gid": each.gid,
        "mode": _mode(each),
        "state": _state(each),
        "reason": each.reason,
        "initiator": each.initiator,
        "createdAt": each.created_at,
        "endedAt": each.ended_at,
        "deadLetter": each.is_dead_letter,
        "owner": each.owner,
        "branches": [
            {
                "name": branch.name,
                "after": list(branch.after),
                "state": _branch_state(progress),
                "attempts": progress.attempts,
                "lastError": progress.last_error,
                "calls": {
                    name: getattr(branch, name).target
                    for name in ("forward", "finish", "undo")
                    if branch.HasField(name)
                },
            }
            for branch, progress in zip(each.branches, each.progress, strict=True)
        ],
        "events": [
            {"at": event.at, "what": event.what, "branch": event.branch, "op": event.op, "message": event.message}
            for event in each.events
        ],
    }
