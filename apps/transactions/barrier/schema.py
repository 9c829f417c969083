"""What the barrier keeps in a participant's database."""

import contextlib
from typing import Final

from sqlalchemy import Column, Engine, Float, Index, LargeBinary, MetaData, String, Table
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from apps.transactions.context import MAX_BRANCH, MAX_GID

METADATA: Final = MetaData()
BARRIER: Final = Table(
    "tx_barrier",
    METADATA,
    Column("gid", String(MAX_GID), primary_key=True),
    Column("branch", String(MAX_BRANCH), primary_key=True),
    Column("op", String(16), primary_key=True),
    Column("outcome", String(16), nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
    Index("tx_barrier_at", "at"),
)
"""One row for every operation on a branch that was ever asked for."""
PREPARED_REPLIES: Final = Table(
    "tx_prepared_reply",
    METADATA,
    Column("gid", String(MAX_GID), primary_key=True),
    Column("branch", String(MAX_BRANCH), primary_key=True),
    Column("reply", LargeBinary, nullable=False),
)
"""Replies of branches in doubt (see `prepared`)."""


def create_tables(engine: Engine, metadata: MetaData = METADATA) -> None:
    """Create what is not there; several processes may do so at once."""
    for table in metadata.sorted_tables:
        statements: list[DDLElement] = [CreateTable(table, if_not_exists=True)]
        statements += [CreateIndex(index, if_not_exists=True) for index in table.indexes]
        for statement in statements:
            # PostgreSQL looks before it writes, so the loser of a race gets an error for what is there now.
            with contextlib.suppress(IntegrityError), engine.begin() as connection:
                connection.execute(statement)
