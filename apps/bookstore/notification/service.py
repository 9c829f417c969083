"""bookstore.v1.Notification: check, call the noticeboard, answer."""

from apps.bookstore import fields
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.bookstore.notification import noticeboard
from apps.transactions.barrier import aio_local
from proto.bookstore.v1 import notification_pb2, notification_pb2_grpc


class NotificationService(notification_pb2_grpc.NotificationServicer):
    """One instance of notification."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def Notify(self, request: notification_pb2.Notice, context: Context) -> notification_pb2.NotifyResponse:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("reader", request.reader),
            fields.text("text", request.text, fields.MAX_NOTICE),
        )
        await aio_local().run(noticeboard.put, request.order_id, request.reader, request.text)
        return notification_pb2.NotifyResponse()

    async def ListNotices(
        self, request: notification_pb2.ListNoticesRequest, context: Context
    ) -> notification_pb2.ListNoticesResponse:
        fields.require(fields.text("reader", request.reader))
        found = await self._database.look(noticeboard.newest, request.reader)
        notices = [notification_pb2.Notice(order_id=each, reader=request.reader, text=text) for each, text in found]
        return notification_pb2.ListNoticesResponse(notices=notices)
