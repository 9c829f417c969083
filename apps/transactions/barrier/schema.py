"""What the barrier keeps in a participant's database."""

from typing import Final

from sqlalchemy import Column, Engine, Float, Index, LargeBinary, MetaData, String, Table, inspect
from sqlalchemy.exc import DBAPIError

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
    """Create what is not there; several processes may do so at once.

    What is there is not touched, not even by an `IF NOT EXISTS`: a branch in doubt holds locks on these tables, and a
    participant that waited for them at its start could never resolve that branch.
    """
    for table in metadata.sorted_tables:
        if inspect(engine).has_table(table.name):
            continue
        try:
            with engine.begin() as connection:
                table.create(connection)
        except DBAPIError:
            if not inspect(engine).has_table(table.name):  # else somebody else was faster
                raise
