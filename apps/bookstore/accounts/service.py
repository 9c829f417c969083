"""bookstore.v1.Accounts: check, call the ledger, answer."""

from time import time_ns

from apps.bookstore import fields
from apps.bookstore.accounts import ledger
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
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

    async def GetBalance(
        self, request: accounts_pb2.GetBalanceRequest, context: Context
    ) -> accounts_pb2.GetBalanceResponse:
        fields.require(fields.text("reader", request.reader))
        return accounts_pb2.GetBalanceResponse(balance_cents=await self._database.look(ledger.balance, request.reader))
