"""`python -m apps.bookstore.notification`; `serving` says what the environment sets."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import serving
from apps.bookstore.database import Database
from apps.bookstore.notification import noticeboard
from apps.bookstore.notification.service import NotificationService
from proto.bookstore.v1 import notification_pb2, notification_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put notification on a server."""
    database = Database(settings.place(noticeboard.FILE), settings.synchronous)
    try:
        await database.run(noticeboard.prepare)
        notification_pb2_grpc.add_NotificationServicer_to_server(NotificationService(database), server)
        yield
    finally:
        database.close()


if __name__ == "__main__":
    notification = notification_pb2.DESCRIPTOR.services_by_name["Notification"]
    sys.exit(serving.run(notification, attach, joins_with=noticeboard.FILE))
