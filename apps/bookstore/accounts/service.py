"""bookstore.v1.Accounts: check, call the ledger, answer."""

from collections.abc import Callable
from functools import partial
from time import time_ns

from sqlalchemy import Connection

from apps.bookstore import fields
from apps.bookstore.accounts import ledger, wallet
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.transactions.barrier import aio_local
from apps.transactions.context import Op
from proto.bookstore.v1 import accounts_pb2, accounts_pb2_grpc


class AccountsService(accounts_pb2_grpc.AccountsServicer):
    """One instance of accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Charge(self, request: accounts_pb2.ChargeRequest, context: Context) -> accounts_pb2.ChargeResponse:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("reader", request.reader),
            fields.between("amount_cents", request.amount_cents, 1, fields.MAX_AMOUNT_CENTS),
        )
        now_ms = time_ns() // 1_000_000
        left = await self._database.run(ledger.charge, request.order_id, request.reader, request.amount_cents, now_ms)
        return accounts_pb2.ChargeResponse(balance_cents=left)

    async def Debit(self, request: accounts_pb2.DebitRequest, context: Context) -> accounts_pb2.DebitResponse:
        call = aio_local().call
        is_event = call is not None and call.op is Op.DELIVER
        return await self._branch(partial(wallet.debit, may_owe=is_event), request)

    async def Refund(self, request: accounts_pb2.DebitRequest, context: Context) -> accounts_pb2.DebitResponse:
        return await self._branch(wallet.refund, request)

    async def Hold(self, request: accounts_pb2.DebitRequest, context: Context) -> accounts_pb2.DebitResponse:
        return await self._branch(wallet.hold, request)

    async def Capture(self, request: accounts_pb2.DebitRequest, context: Context) -> accounts_pb2.DebitResponse:
        return await self._branch(wallet.capture, request)

    async def Release(self, request: accounts_pb2.DebitRequest, context: Context) -> accounts_pb2.DebitResponse:
        return await self._branch(wallet.release, request)

    async def _branch(
        self, step: Callable[[Connection, str, str, int], int], request: accounts_pb2.DebitRequest
    ) -> accounts_pb2.DebitResponse:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("reader", request.reader),
            fields.between("amount_cents", request.amount_cents, 1, fields.MAX_AMOUNT_CENTS),
        )
        left = await aio_local().run(step, request.order_id, request.reader, request.amount_cents)
        return accounts_pb2.DebitResponse(balance_cents=left)

    async def GetBalance(
        self, request: accounts_pb2.GetBalanceRequest, context: Context
    ) -> accounts_pb2.GetBalanceResponse:
        fields.require(fields.text("reader", request.reader))
        return accounts_pb2.GetBalanceResponse(balance_cents=await self._database.look(ledger.balance, request.reader))
