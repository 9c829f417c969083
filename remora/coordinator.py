"""`remora tx coordinator`: the coordinator of apps/transactions, whose log may also be in the mesh's store.

The library knows no mesh, and the store no transactions; here they meet.
"""

import asyncio
import sys
from collections.abc import Sequence

import uvloop
from prometheus_client import start_http_server

from apps.transactions.coordinator.__main__ import Arguments, read, serve, serve_with, until_signalled
from control_plane.store import open_store
from control_plane.store.contract import StoreError
from remora import exits
from remora.store_log import StoreLog


def run(words: Sequence[str]) -> int:
    """The exit code; 2 by way of SystemExit if the words cannot be read."""
    arguments = read(words)
    if arguments.http:
        start_http_server(arguments.http, "127.0.0.1")
    return uvloop.run(until_signalled(lambda stop: _serve(arguments, stop)))


async def _serve(arguments: Arguments, stop: asyncio.Event) -> int:
    if "://" in arguments.log and not arguments.log.startswith("etcd://"):
        return await serve(arguments, stop)
    try:
        store = await open_store(arguments.log)
    except StoreError as error:
        print(f"coordinator: --log: {error}", file=sys.stderr)
        return exits.UNREACHABLE
    return await serve_with(StoreLog(store), arguments, stop)
