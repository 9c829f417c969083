"""The processes of a demo: started, stopped, killed, and none left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from remora.agent import child

STOP_GRACE_S: Final = 20.0
TAIL_LINES: Final = 15


@dataclass(slots=True)
class Member:
    """One process of the demo."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


class Fleet:
    """All processes of a demo. Each writes to a log of its own in `directory`."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.environment = dict(environment)
        self.members: dict[str, Member] = {}

    async def start(
        self,
        name: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        piped: bool = False,
        module: str = "remora",
    ) -> Member:
        """Start `remora WORDS…`, or another module; with `piped`, its standard output is ours to read. Raises OSError."""
        log = self.directory / f"{name}.log"
        command = [sys.executable, "-m", module, *words]
        with log.open("ab") as sink:
            process = await child.start(
                command,
                {**self.environment, **(env or {})},
                stdout=asyncio.subprocess.PIPE if piped else sink.fileno(),
                stderr=sink.fileno(),
            )
        member = self.members[name] = Member(name, process, log)
        return member

    async def ask(self, module: str, *words: str, with_errors: bool = True) -> tuple[int, bytes]:
        """Run `python -m MODULE WORDS…` to its end; exit code and output. Does not outlive us."""
        process = await child.start(
            [sys.executable, "-m", module, *words],
            self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if with_errors else None,
        )
        try:
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return child.exit_code(process), out

    async def stop(self, name: str) -> int:
        """SIGTERM, and wait; the exit code."""
        return await child.stop(self.members.pop(name).process, STOP_GRACE_S)

    async def kill(self, name: str) -> None:
        """SIGKILL to the process and all below it, as a machine that loses its power."""
        member = self.members.pop(name)
        for pid in child.tree(member.process.pid):
            _signal(pid, signal.SIGKILL)
        await member.process.wait()

    def kill_all(self) -> None:
        """SIGKILL to everything, for a user who will not wait; `close` then ends soon."""
        for member in self.members.values():
            for pid in child.tree(member.process.pid) if member.process.returncode is None else ():
                _signal(pid, signal.SIGKILL)

    async def close(self) -> None:
        """Stop everything: what serves last, first of all what calls."""
        for group in _in_order_of_stop(list(self.members)):
            await asyncio.gather(*(self.stop(name) for name in group))

    def ended(self) -> list[Member]:
        """Members that ended although nobody asked them to."""
        return [member for member in self.members.values() if member.process.returncode is not None]

    def tail(self, name: str) -> str:
        """The last lines of a log."""
        log = self.directory / f"{name}.log"
        if not log.exists():
            return ""
        return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


CONTROL_PLANE: Final = "control-plane"
SHOPPERS: Final = "shoppers"


def _in_order_of_stop(names: list[str]) -> list[list[str]]:
    others = [name for name in names if name not in (CONTROL_PLANE, SHOPPERS)]
    groups = [[name for name in names if name == SHOPPERS], others, [name for name in names if name == CONTROL_PLANE]]
    return [group for group in groups if group]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
