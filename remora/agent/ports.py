"""Free ports for processes that will listen on them in a moment.

The kernel hands its ephemeral ports to every outgoing connection, so one that was free a second ago may be taken when a program gets
there. These are from below that range, drawn by chance: only somebody who asks for that very port can take one.
"""

import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
CANDIDATES: Final = range(20_000, 30_000)
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _are_usual() -> bool:
    """True if the kernel leaves the candidates alone."""
    try:
        return int(_EPHEMERAL.read_text().split()[0]) >= CANDIDATES.stop
    except (OSError, ValueError, IndexError):
        return False


def kept(file: Path, count: int) -> list[int]:
    """The ports that were given out for this file the last time, if they are free; else others, which it remembers."""
    try:
        found = [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        found = []
    if len(found) != count or not all(map(_is_free, found)):
        found = free(count)
        with suppress(OSError):  # then it will be others the next time
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.write_text(" ".join(map(str, found)))
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
        try:
            tried.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
    return True


def free(count: int) -> list[int]:
    """So many different ports of the loopback address that nobody listens on now."""
    drawn = random.sample(CANDIDATES, len(CANDIDATES)) if _are_usual() else []
    held: list[socket.socket] = []
    try:
        for port in [*drawn, *[0] * count]:
            each = socket.socket()
            try:
                each.bind((LOOPBACK, port))
            except OSError:
                each.close()
                continue
            held.append(each)
            if len(held) == count:
                break
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()
