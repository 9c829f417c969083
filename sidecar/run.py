"""A sidecar process from its bootstrap file to its end."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import uvloop

from sidecar import inherited
from sidecar.inherited import Line, Sockets
from sidecar.proxy.listener import ListenError
from sidecar.proxy.proxy import Proxy
from sidecar.proxy.worker import Worker
from sidecar.telemetry.stats import Stats
from sidecar.xds.bootstrap import Bootstrap, load
from sidecar.xds.supported import ConfigError

DRAIN_TIMEOUT_S: Final = 30.0
"""SIGTERM: running calls get so long to finish."""

EXIT_DONE: Final = 0
EXIT_CUT: Final = 1
"""Calls still ran when the drain time was over."""
EXIT_BAD_INPUT: Final = 2

log = logging.getLogger("remora.sidecar")


def main(config_path: str, snapshot_path: str | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. `snapshot_path` is where the last good configuration is kept."""
    try:
        bootstrap = load(Path(config_path))
    except ConfigError as error:
        print(f"remora sidecar: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return uvloop.run(_serve(bootstrap, Path(snapshot_path).absolute() if snapshot_path else None))


async def _serve(bootstrap: Bootstrap, snapshot: Path | None) -> int:
    loop = asyncio.get_running_loop()
    stats = Stats()
    worker = Worker(loop, stats)
    sockets = Sockets(os.environ.get(inherited.LISTENERS, ""))
    line = await Line.open(os.environ.get(inherited.LINE, ""))
    proxy = Proxy(worker, bootstrap.limits, sockets)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    is_ready = asyncio.Event()
    try:
        await proxy.apply(bootstrap.configuration)
    except ListenError as error:
        print(f"remora sidecar: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    keeper = None
    if snapshot is not None and bootstrap.ads:
        from sidecar.xds.keeper import Keeper

        keeper = Keeper(snapshot, bootstrap.node, lambda: bool(stats.control_plane_connected))
    admin = None
    if bootstrap.admin is not None:
        # Imported here: a sidecar without an admin endpoint does not pay for prometheus-client.
        from sidecar.telemetry.admin import Admin, AdminError

        def drain_inbound() -> bool:
            return asyncio.run_coroutine_threadsafe(proxy.drain_inbound(DRAIN_TIMEOUT_S), loop).result()

        def explained(question: bytes) -> tuple[int, Any]:
            from sidecar.proxy.explain import answer

            async def ask() -> tuple[int, Any]:
                return answer(proxy, question)

            return asyncio.run_coroutine_threadsafe(ask(), loop).result()

        admin = Admin(stats, is_ready.is_set, lambda: proxy.configuration, drain_inbound)
        admin.explain_by(explained)
        if keeper is not None:
            from sidecar.xds.keeper import KeeperCollector

            admin.show_snapshot(keeper.shown, KeeperCollector(keeper))
        try:
            admin.start(*bootstrap.admin, sockets.copy(*bootstrap.admin))
        except AdminError as error:
            print(f"remora sidecar: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT
    client = None
    if bootstrap.ads:
        # Imported here: a sidecar with a static configuration does not pay for grpc.
        from sidecar.xds.client import AdsClient

        client = asyncio.create_task(AdsClient(bootstrap, proxy, stats, is_ready, keeper).run())
    elif any(ref.source for ref in bootstrap.configuration.secret_refs):
        from sidecar.xds.secrets import follow_static

        client = asyncio.create_task(follow_static(bootstrap, proxy, stats, is_ready))
    else:
        is_ready.set()
    if line is None:
        await stop.wait()
        is_clean = await proxy.drain(DRAIN_TIMEOUT_S)
    else:
        await _until_released(line, proxy, stop, is_ready)
        if admin is not None and bootstrap.admin is not None:
            sockets.let_go(*bootstrap.admin)
            await loop.run_in_executor(None, admin.stop)
        is_clean = await proxy.hand_over(DRAIN_TIMEOUT_S)
    if client is not None:
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
    proxy.close()
    if admin is not None:
        await loop.run_in_executor(None, admin.stop)
    return EXIT_DONE if is_clean else EXIT_CUT


async def _until_released(line: Line, proxy: Proxy, stop: asyncio.Event, is_ready: asyncio.Event) -> None:
    """Take connections once we know what to do with them, and say so; wait until we are asked to end, and may."""

    async def begin() -> None:
        await is_ready.wait()
        await proxy.accept()
        line.is_ready()

    async with asyncio.TaskGroup() as group:
        beginning = group.create_task(begin())
        while True:
            await stop.wait()
            if await line.may_leave():
                break
            stop.clear()
        beginning.cancel()
    line.close()
