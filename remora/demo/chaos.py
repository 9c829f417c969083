"""Faults on a schedule that a seed decides: processes are killed in the middle of what they do, and started again."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final

from remora.agent import child
from remora.demo.fleet import Fleet

PAUSE_S: Final = (0.8, 2.4)
"""Between two faults."""
REST_S: Final = 6.0
"""An instance that was hit is left alone for so long: it starts, and its lease comes back."""
MOST_RESTING: Final = 2
"""So that purchases still happen: where nobody is there, nothing can go wrong."""


class Chaos:
    """`run` it as a task. `restart` starts an instance again, by its name."""

    def __init__(
        self,
        fleet: Fleet,
        restart: Mapping[str, Callable[[], Awaitable[object]]],
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._restart = dict(restart)
        self._dice = Random(seed)
        self._say = say
        self._hit_at: dict[str, float] = {}
        self.faults: Counter[str] = Counter()
        """So far, by kind."""

    async def run(self) -> None:
        """For ever; a cancellation lets a restart that has begun finish."""
        while True:
            await asyncio.sleep(self._dice.uniform(*PAUSE_S))
            now = monotonic()
            rested = [name for name in self._restart if now - self._hit_at.get(name, -REST_S) >= REST_S]
            if not rested or len(self._restart) - len(rested) >= MOST_RESTING:
                continue
            victim, kind = self._dice.choice(rested), self._dice.choice(("machine", "machine", "sidecar"))
            self._hit_at[victim] = now
            await asyncio.shield(asyncio.ensure_future(self._hit(victim, kind)))

    async def _hit(self, victim: str, kind: str) -> None:
        if victim not in self._fleet.members:  # somebody else was faster
            return
        self.faults[kind] += 1
        if kind == "sidecar" and self._kill_sidecar(victim):
            self._say(f"   kill -9 the sidecar of {victim}")
            return
        self._say(f"   kill -9 {victim}, with its sidecar")
        await self._fleet.kill(victim)
        await self._restart[victim]()

    def _kill_sidecar(self, victim: str) -> bool:
        """`remora run` starts it again."""
        member = self._fleet.members[victim]
        for pid in child.tree(member.process.pid)[1:]:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sidecar" in words or any(word.endswith(b"/envoy") for word in words):
                os.kill(pid, signal.SIGKILL)
                return True
        return False
