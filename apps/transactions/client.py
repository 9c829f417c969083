"""How a service starts a transaction: in three lines, whichever mode.

    coordinator = Transactions("transactions.shop:36790")

    saga = coordinator.saga(order_id)                                    # steps one after the other, undone in reverse
    saga.step("take", f"{WAREHOUSE}/Take", request, undo=f"{WAREHOUSE}/PutBack")
    await saga.run()

    async with coordinator.tcc(order_id) as tcc:                         # leaving confirms; an exception cancels
        reply = await tcc.call("debit", f"{ACCOUNTS}/Reserve", request, confirm=..., cancel=..., reply=ReserveReply)

    tcc = coordinator.tcc(order_id).plan("debit", ..., confirm=..., cancel=...).plan("take", ...)
    async with tcc:                                                      # the same with one write for all branches
        await tcc.attempt("debit")

    async with coordinator.xa(order_id) as xa:                           # leaving commits; an exception rolls back
        await xa.call("debit", f"{ACCOUNTS}/Charge", request)

    async with coordinator.message(order_id, query=f"{ORDERS}/Place").deliver("ship", f"{WAREHOUSE}/Ship", request) as message:
        with engine.begin() as connection:                               # committed: delivered; not committed: never
            ...
            mark(connection, message.gid)

A target is `grpc://HOST:PORT/PACKAGE.SERVICE/METHOD`; a request is a protobuf message, or bytes.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import grpc
from google.protobuf.message import Message

from apps.transactions.calling import Caller
from apps.transactions.context import BranchCall, Op, Verdict
from apps.transactions.coordinator.machine import Retries
from apps.transactions.seam import crossing
from apps.transactions.verdict import verdict
from proto.transactions.v1 import coordinator_pb2 as pb
from proto.transactions.v1 import coordinator_pb2_grpc as pb_grpc

WAIT_S: Final = 10.0
"""For a transaction's end."""
CALL_TIMEOUT_S: Final = 3.0
PATIENCE_S: Final = 15.0
"""A call of the coordinator or of a branch that brings no result is repeated for so long."""
_RETRIES: Final = Retries(first_s=0.05, most_s=1.0)
_REPEATABLE: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)

R = TypeVar("R", bound=Message)
T = TypeVar("T")
Request = Message | bytes


class RolledBack(Exception):
    """The transaction was taken back, wholly: nothing of it remains."""

    def __init__(self, gid: str, reason: str) -> None:
        super().__init__(f"{gid} was taken back: {reason}")
        self.gid = gid
        self.reason = reason


class NotEnded(Exception):
    """The transaction is decided or under way, and will come to its end without anybody's doing; `query` tells."""

    def __init__(self, gid: str, state: str) -> None:
        super().__init__(f"{gid} is {state.lower()} still; it goes on by itself")
        self.gid = gid


class Transactions:
    """A channel to the coordinator. Use it within one event loop; `close` it in the end."""

    def __init__(self, target: str, *, wait_s: float = WAIT_S) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=[("grpc.max_reconnect_backoff_ms", 1000)])
        self.stub: pb_grpc.CoordinatorAsyncStub = pb_grpc.CoordinatorStub(self._channel)
        self.wait_s = wait_s
        self.caller = Caller()

    async def close(self) -> None:
        await self.caller.close()
        await self._channel.close()

    def saga(self, gid: str = "", *, timeout_s: float = 0.0, forward_only: bool = False) -> "Saga":
        """A chain or graph of steps. Without a gid one is made up; with your own, asking again is safe."""
        return Saga(self, gid, pb.Options(timeout_s=timeout_s, forward_only=forward_only))

    def tcc(self, gid: str = "", *, timeout_s: float = 0.0) -> "Tcc":
        """Reservations that are confirmed or cancelled together."""
        return Tcc(self, pb.TCC, gid, pb.Options(timeout_s=timeout_s))

    def xa(self, gid: str = "", *, timeout_s: float = 0.0) -> "Xa":
        """Local transactions that are committed or rolled back together."""
        return Xa(self, pb.XA, gid, pb.Options(timeout_s=timeout_s))

    def message(self, gid: str = "", *, query: str, timeout_s: float = 0.0) -> "TwoPhaseMessage":
        """Deliveries that happen if and only if a local transaction commits. `query`: any method behind the initiator's barrier."""
        options = pb.Options(timeout_s=timeout_s, query=pb.Call(target=query))
        return TwoPhaseMessage(self, gid, options)

    async def query(self, gid: str) -> pb.Transaction:
        """Raises grpc.aio.AioRpcError: NOT_FOUND if there is none."""
        return await repeat(lambda: self.stub.Query(pb.QueryRequest(gid=gid), timeout=CALL_TIMEOUT_S))

    async def submit(self, request: pb.SubmitRequest) -> pb.Transaction:
        """Submit and wait. Raises RolledBack, NotEnded, grpc.aio.AioRpcError."""
        request.wait_s = self.wait_s
        timeout_s = self.wait_s + CALL_TIMEOUT_S
        with crossing("send", "submit"):
            try:
                ended = await repeat(lambda: self.stub.Submit(request, timeout=timeout_s))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    raise RolledBack(request.gid, error.details() or "") from None
                raise
        if ended.state == pb.FAILED:
            raise RolledBack(ended.gid, ended.reason)
        if ended.state != pb.SUCCEEDED:
            raise NotEnded(ended.gid, pb.State.Name(ended.state))
        return ended


class Saga:
    """Steps, then `run`."""

    def __init__(self, coordinator: Transactions, gid: str, options: pb.Options) -> None:
        self.gid = gid or uuid.uuid4().hex
        self._coordinator = coordinator
        self._options = options
        self._branches: list[pb.Branch] = []

    def step(
        self,
        name: str,
        action: str,
        request: Request,
        *,
        undo: str | None,
        undo_request: Request | None = None,
        after: Sequence[str] | None = None,
    ) -> Self:
        """Add a step. `undo=None`: there is no way back from it, so it comes last. `after`: the steps that it waits for;
        None: the one before; `()`: none, so that it runs beside the others."""
        if after is None:
            after = [self._branches[-1].name] if self._branches else []
        branch = pb.Branch(name=name, after=after, forward=_call(action, request), cannot_be_undone=undo is None)
        if undo is not None:
            branch.undo.CopyFrom(_call(undo, request if undo_request is None else undo_request))
        self._branches.append(branch)
        return self

    async def run(self) -> pb.Transaction:
        """Submit, and wait for the end. Raises RolledBack, NotEnded, grpc.aio.AioRpcError."""
        request = pb.SubmitRequest(gid=self.gid, mode=pb.SAGA, branches=self._branches, options=self._options)
        return await self._coordinator.submit(request)


class _TwoPhases:
    """The initiator calls the branches itself, within `async with`."""

    def __init__(self, coordinator: Transactions, mode: "pb.Mode.ValueType", gid: str, options: pb.Options) -> None:
        self.gid = gid or uuid.uuid4().hex
        self._coordinator = coordinator
        self._mode = mode
        self._options = options
        self._first: list[pb.Branch] = []
        self._planned: dict[str, tuple[Op, str, Request]] = {}

    async def __aenter__(self) -> Self:
        request = pb.BeginRequest(gid=self.gid, mode=self._mode, branches=self._first, options=self._options)
        with crossing("send", "begin"):
            begun = await repeat(lambda: self._coordinator.stub.Begin(request, timeout=CALL_TIMEOUT_S))
        if begun.state in (pb.UNDOING, pb.FAILED):  # the gid was begun before
            raise RolledBack(self.gid, begun.reason)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._coordinator.submit(pb.SubmitRequest(gid=self.gid))
            return
        request = pb.AbortRequest(gid=self.gid, reason=_why(error)[:200])
        try:
            with crossing("send", "abort"):
                await self._coordinator.stub.Abort(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            pass  # then its time-out takes it back

    def _announce(self, branch: pb.Branch, op: Op, target: str, request: Request) -> Self:
        self._first.append(branch)
        self._planned[branch.name] = op, target, request
        return self

    @overload
    async def attempt(self, name: str, *, reply: type[R]) -> R: ...
    @overload
    async def attempt(self, name: str, *, reply: None = None) -> bytes: ...
    async def attempt(self, name: str, *, reply: type[R] | None = None) -> R | bytes:
        """Call a branch that was planned. Raises grpc.aio.AioRpcError: ABORTED if it is refused."""
        op, target, request = self._planned[name]
        return await self._forward(name, op, target, request, reply)

    async def _enlist(self, branch: pb.Branch) -> None:
        request = pb.AddBranchRequest(gid=self.gid, branches=[branch])
        with crossing("send", f"add {branch.name}"):
            try:
                await repeat(lambda: self._coordinator.stub.AddBranch(request, timeout=CALL_TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    raise RolledBack(self.gid, error.details() or "") from None
                raise

    async def _forward(self, name: str, op: Op, target: str, request: Request, reply: type[R] | None) -> R | bytes:
        call = BranchCall(self.gid, name, op)

        def once() -> Awaitable[bytes]:
            return self._coordinator.caller.call(target, _body(request), call, CALL_TIMEOUT_S)

        with crossing("send", f"{name}/{op}"):
            answer = await repeat(once, is_branch=True)
        return answer if reply is None else reply.FromString(answer)


class Tcc(_TwoPhases):
    """See `Transactions.tcc`."""

    def plan(
        self,
        name: str,
        target: str,
        request: Request,
        *,
        confirm: str,
        cancel: str,
        confirm_request: Request | None = None,
        cancel_request: Request | None = None,
    ) -> Self:
        """Announce a branch before it is begun: it costs no write of its own. `attempt` tries it."""
        branch = _tcc_branch(name, request, confirm, cancel, confirm_request, cancel_request)
        return self._announce(branch, Op.TRY, target, request)

    @overload
    async def call(
        self, name: str, target: str, request: Request, *, confirm: str, cancel: str,
        confirm_request: Request | None = None, cancel_request: Request | None = None, reply: type[R],
    ) -> R: ...  # fmt: skip
    @overload
    async def call(
        self, name: str, target: str, request: Request, *, confirm: str, cancel: str,
        confirm_request: Request | None = None, cancel_request: Request | None = None, reply: None = None,
    ) -> bytes: ...  # fmt: skip
    async def call(
        self,
        name: str,
        target: str,
        request: Request,
        *,
        confirm: str,
        cancel: str,
        confirm_request: Request | None = None,
        cancel_request: Request | None = None,
        reply: type[R] | None = None,
    ) -> R | bytes:
        """Try a branch. Raises grpc.aio.AioRpcError: ABORTED if it is refused."""
        await self._enlist(_tcc_branch(name, request, confirm, cancel, confirm_request, cancel_request))
        return await self._forward(name, Op.TRY, target, request, reply)


def _tcc_branch(
    name: str,
    request: Request,
    confirm: str,
    cancel: str,
    confirm_request: Request | None,
    cancel_request: Request | None,
) -> pb.Branch:
    return pb.Branch(
        name=name,
        finish=_call(confirm, request if confirm_request is None else confirm_request),
        undo=_call(cancel, request if cancel_request is None else cancel_request),
    )


class Xa(_TwoPhases):
    """See `Transactions.xa`."""

    def plan(self, name: str, target: str, request: Request) -> Self:
        """Announce a branch before it is begun: it costs no write of its own. `attempt` prepares it."""
        branch = pb.Branch(name=name, finish=_call(target, b""), undo=_call(target, b""))
        return self._announce(branch, Op.PREPARE, target, request)

    @overload
    async def call(self, name: str, target: str, request: Request, *, reply: type[R]) -> R: ...
    @overload
    async def call(self, name: str, target: str, request: Request, *, reply: None = None) -> bytes: ...
    async def call(self, name: str, target: str, request: Request, *, reply: type[R] | None = None) -> R | bytes:
        """Do a branch's work and prepare it. Raises grpc.aio.AioRpcError: ABORTED if it is refused."""
        await self._enlist(pb.Branch(name=name, finish=_call(target, b""), undo=_call(target, b"")))
        return await self._forward(name, Op.PREPARE, target, request, reply)


class TwoPhaseMessage(_TwoPhases):
    """See `Transactions.message`."""

    def __init__(self, coordinator: Transactions, gid: str, options: pb.Options) -> None:
        super().__init__(coordinator, pb.MESSAGE, gid, options)

    def deliver(self, name: str, target: str, request: Request, after: Sequence[str] = ()) -> Self:
        """Add a delivery; it happens at least once, and behind a barrier in effect once."""
        self._first.append(pb.Branch(name=name, after=after, finish=_call(target, request)))
        return self


async def repeat(call: Callable[[], Awaitable[T]], *, is_branch: bool = False, dice: random.Random | None = None) -> T:
    """Call until there is a result, or PATIENCE_S is over. Raises grpc.aio.AioRpcError."""
    dice = dice or random.Random()
    end = time.monotonic() + PATIENCE_S
    failures = 0
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if not _is_repeatable(error, is_branch) or time.monotonic() > end:
                raise
        failures += 1
        await asyncio.sleep(_RETRIES.pause_s(failures, dice))


def _is_repeatable(error: grpc.aio.AioRpcError, is_branch: bool) -> bool:
    if is_branch and verdict(error.code(), error.details()) is Verdict.ONGOING:
        return True
    return error.code() in _REPEATABLE


def _why(error: BaseException) -> str:
    """In one line, for people."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def _call(target: str, request: Request) -> pb.Call:
    return pb.Call(target=target, body=_body(request))


def _body(request: Request | Any) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString(deterministic=True))
