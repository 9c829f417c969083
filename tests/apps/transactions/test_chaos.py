"""Many transactions at once over a network that loses requests and replies, repeats them at once and much later, and so reorders them.

Seeded: a failure names its seed, and the seed is the whole of the input. (What the event loop makes of it may differ a little.)
"""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from apps.transactions.audit import Began, Closing, Ended, Fact, Opening, check
from apps.transactions.audit.history import Effect
from apps.transactions.barrier import Refused, mark
from apps.transactions.calling import Caller
from apps.transactions.client import NotEnded, RolledBack
from apps.transactions.context import BranchCall
from proto.transactions.v1 import coordinator_pb2 as pb
from tests.apps.transactions import bank
from tests.apps.transactions.bank import request
from tests.apps.transactions.live import Participant, Replica, participant, replica
from tests.waiting import eventually_async

TRANSACTIONS: Final = 12
OPENING: Final = ({"ann": 100, "bob": 40}, {"till": 50, "bank": 0})


class Unreliable(Caller):
    """A network as it is on a bad day."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice
        self.late: set[asyncio.Task[Any]] = set()

    async def call(self, target: str, body: bytes, branch: BranchCall | None, timeout_s: float) -> bytes:
        fate = self._dice.random()
        if fate < 0.10:
            raise _lost("the request was lost")
        if fate < 0.25:  # a copy that comes late, perhaps after everything is over
            self._later(self._dice.uniform(0.0, 0.6), target, body, branch, timeout_s)
        if fate < 0.40:  # a copy that comes at once
            self._later(0.0, target, body, branch, timeout_s)
        reply = await super().call(target, body, branch, timeout_s)
        if 0.35 < fate < 0.55:
            raise _lost("the reply was lost")
        return reply

    def _later(self, pause_s: float, *call: Any) -> None:
        async def send() -> None:
            await asyncio.sleep(pause_s)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await Caller.call(self, *call)

        task = asyncio.create_task(send())
        self.late.add(task)
        task.add_done_callback(self.late.discard)


def _lost(text: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, text)


class Bank:
    def __init__(self, left: Participant, right: Participant, one: Replica, dice: random.Random) -> None:
        self.sides = (left, right)
        self.one = one
        self.dice = dice
        self.began: list[Fact] = []

    def plan(self, number: int) -> Any:
        """Everything that is left to chance, before anything runs."""
        mode = self.dice.choice(["saga", "tcc", "message"])
        source, target = self.dice.choice(["ann", "bob"]), self.dice.choice(["till", "bank"])
        return self.transfer(f"{mode}-{number}", mode, source, target, self.dice.randint(1, 60))

    async def transfer(self, gid: str, mode: str, source: str, target: str, amount: int) -> None:
        left, right = self.sides
        steps = [("credit", right, request(target, amount)), ("debit", left, request(source, -amount))]
        self.began.append(Began(gid, mode, ("credit",) if mode == "message" else ("credit", "debit"), 0.0))
        try:
            if mode == "saga":
                saga = self.one.client.saga(gid)
                for name, at, body in steps:
                    saga.step(name, at.url("Move"), body, undo=at.url("MoveBack"))
                await saga.run()
            elif mode == "tcc":
                async with self.one.client.tcc(gid, timeout_s=1.0) as tcc:
                    for name, at, body in steps:
                        confirm, cancel = at.url("Confirm"), at.url("Cancel")
                        await tcc.call(name, at.url("Reserve"), body, confirm=confirm, cancel=cancel)
            else:
                message = self.one.client.message(gid, query=left.url("Move"), timeout_s=0.5)
                async with message.deliver("credit", right.url("Move"), request(target, amount)):
                    await asyncio.to_thread(self.pay, gid, source, amount)
        except (RolledBack, NotEnded, Refused):
            pass
        except grpc.aio.AioRpcError as error:
            assert error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE), error

    def pay(self, gid: str, source: str, amount: int) -> None:
        with self.sides[0].database.begin() as connection:
            bank.change(connection, None, source, -amount, 0)
            mark(connection, gid)

    async def has_ended(self) -> bool:
        listed = await self.one.client.stub.List(pb.ListRequest(limit=1000))
        return all(each.state in (pb.SUCCEEDED, pb.FAILED) for each in listed.transactions)

    async def history(self) -> Sequence[Fact]:
        facts: list[Fact] = []
        for opening in OPENING:
            facts += [Opening(name, "money", amount) for name, amount in opening.items()]
        facts += self.began
        listed = await self.one.client.stub.List(pb.ListRequest(limit=1000))
        facts += [Ended(each.gid, pb.State.Name(each.state).lower(), 0.0) for each in listed.transactions]
        for side in self.sides:
            facts += [Effect(*row) for row in bank.ledger(side.database)]
            facts += [Closing(name, *held) for name, held in bank.holdings(side.database).items()]
        return facts


async def bad_day(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    network = Unreliable(dice)
    async with (
        participant(f"sqlite:///{tmp_path / f'left-{seed}.db'}", OPENING[0]) as left,
        participant(f"sqlite:///{tmp_path / f'right-{seed}.db'}", OPENING[1]) as right,
        replica(f"sqlite:///{tmp_path / f'log-{seed}.db'}", calls=network) as one,
    ):
        bank_ = Bank(left, right, one, dice)
        await asyncio.gather(*[bank_.plan(number) for number in range(TRANSACTIONS)])
        await eventually_async(bank_.has_ended, timeout_s=20)
        await eventually_async(lambda: not network.late, timeout_s=20)  # the last copies have come
        violations = check(await bank_.history())
    assert violations == [], f"seed {seed}: {[str(each) for each in violations]}"


async def test_a_bad_day_on_the_network_loses_nothing(tmp_path: Path) -> None:
    for seed in range(2):
        await bad_day(tmp_path, seed)


@pytest.mark.slow
async def test_many_bad_days_on_the_network_lose_nothing(tmp_path: Path) -> None:
    for seed in range(100):
        await bad_day(tmp_path, seed)
