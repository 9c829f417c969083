"""bookstore.v1.Payment: check, call the earnings, answer."""

from collections.abc import Callable

from sqlalchemy import Connection

from apps.bookstore import fields
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.bookstore.payment import earnings
from apps.transactions.barrier import aio_local
from proto.bookstore.v1 import payment_pb2, payment_pb2_grpc


class PaymentService(payment_pb2_grpc.PaymentServicer):
    """One instance of payment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Credit(self, request: payment_pb2.CreditRequest, context: Context) -> payment_pb2.CreditResponse:
        return await _branch(earnings.credit, request)

    async def Announce(self, request: payment_pb2.CreditRequest, context: Context) -> payment_pb2.CreditResponse:
        return await _branch(earnings.announce, request)

    async def Confirm(self, request: payment_pb2.CreditRequest, context: Context) -> payment_pb2.CreditResponse:
        return await _branch(earnings.confirm, request)

    async def Withdraw(self, request: payment_pb2.CreditRequest, context: Context) -> payment_pb2.CreditResponse:
        return await _branch(earnings.withdraw, request)

    async def GetMerchant(self, request: payment_pb2.GetMerchantRequest, context: Context) -> payment_pb2.Merchant:
        fields.require(fields.text("merchant", request.merchant))
        earned, paid_out = await self._database.look(earnings.merchant, request.merchant)
        return payment_pb2.Merchant(merchant=request.merchant, earned_cents=earned, paid_out_cents=paid_out)


async def _branch(
    step: Callable[[Connection, str, str, int], None], request: payment_pb2.CreditRequest
) -> payment_pb2.CreditResponse:
    fields.require(
        fields.order_id(request.order_id),
        fields.text("merchant", request.merchant),
        fields.between("amount_cents", request.amount_cents, 1, fields.MAX_AMOUNT_CENTS),
    )
    await aio_local().run(step, request.order_id, request.merchant, request.amount_cents)
    return payment_pb2.CreditResponse()
