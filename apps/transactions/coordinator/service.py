"""The coordinator's gRPC edge: parse, ask the engine, answer."""

from collections.abc import Awaitable
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from apps.transactions.context import DOMAIN
from apps.transactions.coordinator import codec
from apps.transactions.coordinator.check import MAX_TOTAL_BYTES, IllFormed
from apps.transactions.coordinator.engine import MAX_WAIT_S, Engine, Refusal
from apps.transactions.coordinator.log import LogUnavailable
from apps.transactions.coordinator.machine import Transaction
from apps.transactions.coordinator.states import ENDS, Mode, State
from proto.transactions.v1 import coordinator_pb2 as pb
from proto.transactions.v1 import coordinator_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES: Final = 2 * MAX_TOTAL_BYTES
"""Above what `check` takes, so that the refusal says why."""
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
NOBODY: Final = "nobody"
"""A caller without an identity, where callers have one."""
_DETAILS_KEY: Final = "grpc-status-details-bin"

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class CoordinatorService(pb_grpc.CoordinatorServicer):
    """See proto/transactions/v1/coordinator.proto."""

    def __init__(self, engine: Engine, identity_key: str = "") -> None:
        """`identity_key`: the metadata key in which whoever stands before the coordinator says who calls. Empty: nobody can tell."""
        self._engine = engine
        self._identity_key = identity_key

    async def Begin(self, request: pb.BeginRequest, context: Context) -> pb.Transaction:
        mode = await self._mode(request.mode, context)
        branches, options = codec.branches_of(request.branches), codec.options_of(request.options)
        return codec.to_message(
            await _answered(self._engine.begin(request.gid, mode, branches, options, self._caller(context)), context)
        )

    async def AddBranch(self, request: pb.AddBranchRequest, context: Context) -> pb.Transaction:
        return codec.to_message(
            await _answered(
                self._engine.add(request.gid, codec.branches_of(request.branches), self._caller(context)), context
            )
        )

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.Transaction:
        await self._check_wait(request.wait_s, context)
        if request.mode == pb.MODE_UNSPECIFIED and not request.branches:
            made = await _answered(self._engine.submit(request.gid, self._caller(context)), context)
        else:
            mode = await self._mode(request.mode, context)
            branches, options = codec.branches_of(request.branches), codec.options_of(request.options)
            made = await _answered(
                self._engine.submit_whole(request.gid, mode, branches, options, self._caller(context)), context
            )
        return await self._after(made, request.wait_s, context)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.Transaction:
        await self._check_wait(request.wait_s, context)
        made = await _answered(self._engine.abort(request.gid, request.reason, self._caller(context)), context)
        return await self._after(made, request.wait_s, context)

    async def Query(self, request: pb.QueryRequest, context: Context) -> pb.Transaction:
        transaction, record = await _answered(self._engine.query(request.gid), context)
        return codec.to_message(transaction, record.token, record.owner)

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        limit = request.limit or DEFAULT_PAGE
        if not 1 <= limit <= MAX_PAGE:
            text = f"limit: {limit} is out of range; 1 to {MAX_PAGE} is needed"
            await _refuse(grpc.StatusCode.INVALID_ARGUMENT, "BAD_LIMIT", text, context)
        states: list[State] = []
        for number in request.states:
            state = codec.state_of(number)
            if state is None:
                text = f"states: {number} is no state"
                await _refuse(grpc.StatusCode.INVALID_ARGUMENT, "BAD_STATE", text, context)
            else:
                states.append(state)
        work = self._engine.page(states, request.only_dead_letters, request.after, limit)
        found = await _answered(work, context)
        messages = [codec.to_message(transaction, record.token, record.owner) for transaction, record in found]
        return pb.ListResponse(transactions=messages, next=messages[-1].gid if len(messages) == limit else "")

    async def Retry(self, request: pb.RetryRequest, context: Context) -> pb.Transaction:
        return codec.to_message(await _answered(self._engine.retry(request.gid), context))

    async def Force(self, request: pb.ForceRequest, context: Context) -> pb.Transaction:
        return codec.to_message(await _answered(self._engine.force(request.gid, request.reason), context))

    def _caller(self, context: Context) -> str:
        """Who calls; empty if nobody can tell. Of `x-forwarded-client-cert`, the SPIFFE id of the last certificate."""
        if not self._identity_key:
            return ""
        for key, value in context.invocation_metadata() or ():
            if key == self._identity_key and isinstance(value, str):
                certificates = [part for part in value.rpartition(",")[2].split(";") if part.startswith("URI=")]
                return certificates[-1].removeprefix("URI=") if certificates else value
        return NOBODY

    async def _mode(self, number: int, context: Context) -> Mode:
        mode = codec.mode_of(number)
        if mode is None:
            known = ", ".join(each.name for each in Mode)
            text = f"mode: {number} is not known; one of {known} is"
            await _refuse(grpc.StatusCode.INVALID_ARGUMENT, "BAD_MODE", text, context)
        return mode

    async def _check_wait(self, wait_s: float, context: Context) -> None:
        if not 0 <= wait_s <= MAX_WAIT_S:
            text = f"wait_s: {wait_s:g} is out of range; 0 to {MAX_WAIT_S:g} is needed"
            await _refuse(grpc.StatusCode.INVALID_ARGUMENT, "BAD_WAIT", text, context)

    async def _after(self, made: Transaction, wait_s: float, context: Context) -> pb.Transaction:
        if wait_s and made.state not in ENDS:
            made = await _answered(self._engine.wait_for_end(made.gid, wait_s), context)
        return codec.to_message(made)


async def _answered(work: Awaitable[T], context: Context) -> T:
    try:
        return await work
    except Refusal as refusal:
        await _refuse(refusal.code, refusal.reason, str(refusal), context)
    except IllFormed as wrong:
        await _refuse(grpc.StatusCode.INVALID_ARGUMENT, wrong.reason, str(wrong), context)
    except LogUnavailable as error:
        await _refuse(grpc.StatusCode.UNAVAILABLE, "LOG", str(error), context)


async def _refuse(code: grpc.StatusCode, reason: str, text: str, context: Context) -> NoReturn:
    status = status_pb2.Status(code=code.value[0], message=text)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    await context.abort(code, text, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort does not return")
