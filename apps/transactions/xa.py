"""Branches in doubt, and who resolves them.

A branch that is prepared holds its locks until it is told how the transaction ended. The coordinator tells it, again and again. If it
never knew of the branch, or its log was lost, nobody would: so a participant asks by itself, at its start and then from time to time.
No decision to commit in the log means that there will be none that this branch is part of (*presumed abort*): it is rolled back.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Final

import grpc
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from apps.transactions.barrier import prepared
from apps.transactions.client import Transactions
from apps.transactions.context import BranchCall, Op
from proto.transactions.v1 import coordinator_pb2 as pb

ASK_EVERY_S: Final = 10.0


class Decision(Enum):
    COMMIT = "commit"
    ROLL_BACK = "roll back"
    WAIT = "wait"


Decide = Callable[[str], Awaitable[Decision]]

_DECISIONS: Final = {
    pb.FINISHING: Decision.COMMIT,
    pb.SUCCEEDED: Decision.COMMIT,
    pb.UNDOING: Decision.ROLL_BACK,
    pb.FAILED: Decision.ROLL_BACK,
}


def ask(coordinator: Transactions) -> Decide:
    """What the coordinator's log says. A gid that it does not know is presumed to be taken back."""

    async def decide(gid: str) -> Decision:
        try:
            found = await coordinator.query(gid)
        except grpc.aio.AioRpcError as error:
            return Decision.ROLL_BACK if error.code() is grpc.StatusCode.NOT_FOUND else Decision.WAIT
        return _DECISIONS.get(found.state, Decision.WAIT)

    return decide


async def resolve(engine: Engine, decide: Decide) -> dict[BranchCall, Decision]:
    """Go once through what is in doubt in this database; what was decided for each branch."""
    decisions: dict[BranchCall, Decision] = {}
    for branch in await asyncio.to_thread(prepared.in_doubt, engine):
        decision = await decide(branch.gid)
        decisions[branch] = decision
        if decision is Decision.COMMIT:
            call = BranchCall(branch.gid, branch.branch, Op.COMMIT)
            await asyncio.to_thread(prepared.commit, engine, call)
        elif decision is Decision.ROLL_BACK:
            call = BranchCall(branch.gid, branch.branch, Op.ROLLBACK)
            await asyncio.to_thread(prepared.roll_back, engine, call)
    return decisions


async def keep_resolving(engine: Engine, decide: Decide, every_s: float = ASK_EVERY_S) -> None:
    """`resolve` for ever. Run it as a task beside the server."""
    while True:
        with contextlib.suppress(DBAPIError):  # the database is away; its branches wait for it as well
            await resolve(engine, decide)
        await asyncio.sleep(every_s)
