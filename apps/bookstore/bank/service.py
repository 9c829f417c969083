"""bookstore.v1.Bank: late, and one answer in so many is a lie."""

import asyncio
import random
from dataclasses import dataclass

import grpc

from apps.bookstore import fields
from apps.bookstore.bank import statement
from apps.bookstore.bank.statement import Transfer
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.bookstore.refusals import Reason, Refusal
from proto.bookstore.v1 import payment_pb2, payment_pb2_grpc


@dataclass(frozen=True, slots=True)
class Character:
    """How the bank behaves."""

    slowest_s: float = 0.3
    """An answer takes up to so long."""
    lies: float = 0.1
    """Share of transfers that are made and said to have failed."""
    refuses: float = 0.05
    """Share of transfers that are not made, and fail."""


class BankService(payment_pb2_grpc.BankServicer):
    """One bank."""

    def __init__(self, database: Database, character: Character, dice: random.Random) -> None:
        self._database = database
        self._character = character
        self._dice = dice

    async def Transfer(self, request: payment_pb2.TransferRequest, context: Context) -> payment_pb2.TransferResponse:
        fields.require(
            fields.order_id(request.key) if request.key else None,
            fields.text("merchant", request.merchant),
            fields.between("amount_cents", request.amount_cents, 1, fields.MAX_AMOUNT_CENTS),
        )
        chance, slow = self._dice.random(), self._dice.random()
        await asyncio.sleep(self._character.slowest_s * slow)
        if chance < self._character.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the bank is closed")
        wanted = Transfer(request.key, request.merchant, request.amount_cents)
        made = await self._database.run(statement.transfer, wanted)
        if chance < self._character.refuses + self._character.lies:
            await context.abort(grpc.StatusCode.INTERNAL, "the transfer failed")  # it did not
        return payment_pb2.TransferResponse(merchant=made.merchant, amount_cents=made.amount_cents)

    async def GetTransfer(
        self, request: payment_pb2.GetTransferRequest, context: Context
    ) -> payment_pb2.TransferResponse:
        fields.require(fields.order_id(request.key))
        found = await self._database.look(statement.find, request.key)
        if found is None:
            raise Refusal(Reason.NO_SUCH_TRANSFER, f'nothing was paid under "{request.key}"')
        return payment_pb2.TransferResponse(merchant=found.merchant, amount_cents=found.amount_cents)
