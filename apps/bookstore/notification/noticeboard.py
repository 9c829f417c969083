"""What notification keeps: the notices, newest last."""

from typing import Final

from sqlalchemy import Column, Connection, MetaData, Table, Text, bindparam, insert, select

from apps.bookstore.database import INTEGER

FILE: Final = "notification.sqlite3"
MOST_LISTED: Final = 100

_METADATA: Final = MetaData()
NOTICES: Final = Table(
    "notices",
    _METADATA,
    Column("number", INTEGER, primary_key=True, autoincrement=True),
    Column("order_id", Text, nullable=False),
    Column("reader", Text, nullable=False, index=True),
    Column("text", Text, nullable=False),
    sqlite_strict=True,
)
_PUT: Final = insert(NOTICES)
_LIST: Final = (
    select(NOTICES).where(NOTICES.c.reader == bindparam("reader")).order_by(NOTICES.c.number.desc()).limit(MOST_LISTED)
)


def prepare(tx: Connection) -> None:
    """Create what is missing."""
    _METADATA.create_all(tx)


def put(tx: Connection, order_id: str, reader: str, text: str) -> None:
    """Keep a notice."""
    tx.execute(_PUT, {"order_id": order_id, "reader": reader, "text": text})


def newest(tx: Connection, reader: str) -> list[tuple[str, str]]:
    """Order and text of a reader's notices, the newest first."""
    return [(row.order_id, row.text) for row in tx.execute(_LIST, {"reader": reader})]
