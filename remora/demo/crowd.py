"""What the shoppers saw: their running totals, read from the lines that they print."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

GOOD: Final = "OK"
REFUSED: Final = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Tally:
    """Purchases so far, or between two moments."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By gRPC status."""
    instances: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (version, instance) of the warehouse that took the books from the shelf."""
    repeats: int = 0
    """Calls between services that had to be repeated."""

    @property
    def calls(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Neither done nor refused by a limit."""
        return self.calls - self.statuses[GOOD] - self.statuses[REFUSED]

    @property
    def versions(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (version, _), count in self.instances.items():
            found[version] += count
        return found

    def since(self, before: "Tally") -> "Tally":
        """What came after `before`."""
        return Tally(self.statuses - before.statuses, self.instances - before.instances, self.repeats - before.repeats)


class Crowd:
    """Follows the shoppers' output."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines
        self._changed = asyncio.Condition()
        self.tally = Tally()

    async def run(self) -> None:
        """Read until the shoppers end."""
        while line := await self._lines.readline():
            if not line.startswith(b"{"):
                continue
            said = json.loads(line)
            instances = {tuple(name.split("/", 1)): count for name, count in said["spread"].items()}
            self.tally = Tally(Counter(said["outcomes"]), Counter(instances), said["repeated_calls"])
            async with self._changed:
                self._changed.notify_all()

    async def count(self, calls: int, longest_s: float) -> Tally:
        """The next so many purchases; fewer if the time is over."""
        before = self.tally
        try:
            async with asyncio.timeout(longest_s), self._changed:
                await self._changed.wait_for(lambda: self.tally.since(before).calls >= calls)
        except TimeoutError:
            pass
        return self.tally.since(before)

    async def fresh(self) -> Tally:
        """The totals of the next line."""
        async with self._changed:
            await self._changed.wait()
        return self.tally
