"""`remora up`: the control plane in the foreground."""

import asyncio
import signal
import sys

import uvloop

from control_plane.api.server import CannotListen, running
from control_plane.store import shown
from control_plane.store.contract import BadTarget, StoreError
from remora import environment, exits
from remora.addresses import host_port


def default_store() -> str:
    """Where the embedded store is if nobody says otherwise."""
    return str(environment.state_directory() / "store")


def run(listen: str, store: str | None, http: str) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises UsageError."""
    return uvloop.run(_serve(host_port(listen, "--listen"), store or default_store(), host_port(http, "--http")))


async def _serve(listen: tuple[str, int], store: str, http: tuple[str, int]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with running(listen, store, http) as plane:
            print(
                f"remora control plane: xDS and API on {listen[0]}:{plane.port}, /metrics and /healthz on "
                f"{http[0]}:{plane.http_port}, store {shown(store)}",
                file=sys.stderr,
                flush=True,
            )
            await stop.wait()
    except CannotListen as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except BadTarget as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except StoreError as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.UNREACHABLE
    return exits.DONE
