"""What all connections of a process share: the loop, the clock of this wake-up, who has bytes to write, deadlines."""

import asyncio
from collections.abc import Mapping
from random import Random
from time import monotonic

from mypy_extensions import trait

from sidecar.proxy.config import SecretRef, TlsCertificate
from sidecar.proxy.timers import TimerWheel
from sidecar.telemetry.stats import Stats


@trait
class Peer:
    """A connection that gathers output."""

    is_dirty: bool

    def flush(self) -> None:
        """Write what has gathered."""
        ...


class Worker:
    """One per process; everything runs on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stats: Stats, chance: Random | None = None) -> None:
        self.loop = loop
        self.stats = stats
        self.chance = chance or Random()
        self.now = monotonic()
        """Seconds; set once for each wake-up, which is as exact as latencies need."""
        self.timers = TimerWheel(loop)
        self.secrets: Mapping[SecretRef, TlsCertificate | bytes] = {}
        """What new connections show and trust, where the configuration only refers to it (SDS); swapped as a whole."""
        self._dirty: list[Peer] = []
        self._is_scheduled = False
        self.is_receiving = False
        """True while bytes from a socket are taken in: who does that flushes at its end."""

    def mark(self, peer: Peer) -> None:
        """The peer has bytes to write: they leave once, when what is being received is taken in, or in the loop's next turn."""
        if not peer.is_dirty:
            peer.is_dirty = True
            self._dirty.append(peer)
            if not self.is_receiving and not self._is_scheduled:
                self._is_scheduled = True
                self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Let everybody write what has gathered."""
        self._is_scheduled = False
        dirty, self._dirty = self._dirty, []
        for peer in dirty:
            peer.is_dirty = False
            peer.flush()
