"""The barrier: a participant's own database settles what the network repeats, loses and reorders.

`core` knows SQL and no gRPC; `interceptor` puts it around every call of a server, synchronous or asyncio; `prepared` is the same for
branches that are PostgreSQL's prepared transactions.
"""

from apps.transactions.barrier.aio import AioBarrier, AioLocal, aio_local
from apps.transactions.barrier.core import (
    Contradiction,
    Refused,
    mark,
    run,
)
from apps.transactions.barrier.schema import create_tables
from apps.transactions.barrier.sync import Barrier, Local, local

__all__ = [
    "AioBarrier",
    "AioLocal",
    "Barrier",
    "Contradiction",
    "Local",
    "Refused",
    "aio_local",
    "create_tables",
    "local",
    "mark",
    "run",
]
