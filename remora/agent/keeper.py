"""Keeps a sidecar running: starts it, starts it again when it ends, and lets another take its place when it is asked to end.

Our own sidecar gets its listening sockets from here (`sidecar/inherited.py`). The program's sockets, where it sends its calls, outlive any sidecar: a
call that comes while one crashed waits for the next one. Where callers come in, nobody listens then, so that they go to other instances at once.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from remora.agent import child
from sidecar import inherited

RESTART_BACKOFF_S: Final = 0.5
LONGEST_RESTART_BACKOFF_S: Final = 10.0
STEADY_S: Final = 30.0
"""A sidecar that ran so long is started again as if it were the first time."""
SUCCESSOR_S: Final = 30.0
"""A sidecar that is to take the place of another gets so long to be ready."""
BACKLOG: Final = 1024
Address = tuple[str, int]


class Doors:
    """Listening sockets that are held for sidecars. One whose address is taken is left to the sidecar, which says so."""

    def __init__(self, lasting: Sequence[Address], inbound: Sequence[Address]) -> None:
        self._lasting = tuple(lasting)
        self._inbound = tuple(inbound)
        self._open: dict[Address, socket.socket] = {}

    def open(self) -> None:
        """Listen where nobody of us does."""
        for address in (*self._lasting, *self._inbound):
            if address not in self._open and address[1]:
                sock = socket.socket()
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(address)
                    sock.listen(BACKLOG)
                except OSError:
                    sock.close()
                    continue
                self._open[address] = sock

    def close_inbound(self) -> None:
        """Whoever comes finds nobody, as soon as no sidecar listens there either."""
        for address in self._inbound:
            sock = self._open.pop(address, None)
            if sock is not None:
                sock.close()

    def close(self) -> None:
        """Let go of all."""
        while self._open:
            self._open.popitem()[1].close()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a sidecar is to inherit."""
        return tuple(sock.fileno() for sock in self._open.values())

    def __str__(self) -> str:
        return " ".join(f"{host}:{port}={sock.fileno()}" for (host, port), sock in self._open.items())


class Sidecar:
    """One sidecar process, and the line to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader | None,
        writer: asyncio.StreamWriter | None,
    ) -> None:
        self.process = process
        self.is_ready = asyncio.Event()
        self.is_leaving = asyncio.Event()
        self._writer = writer
        self._listening = asyncio.create_task(self._listen(reader)) if reader is not None else None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        words = {inherited.READY: self.is_ready, inherited.LEAVING: self.is_leaving}
        with suppress(OSError):
            while line := await reader.readline():
                said = words.get(line.decode().strip())
                if said is not None:
                    said.set()

    def answer(self, word: str) -> None:
        """To one that is leaving."""
        if self._writer is not None:
            self.is_leaving.clear()
            self._writer.write(f"{word}\n".encode())

    async def stop(self, grace_s: float) -> None:
        """End it, now or when the grace is over."""
        self.hang_up()
        await child.stop(self.process, grace_s)
        if self._listening is not None:
            await asyncio.gather(self._listening, return_exceptions=True)

    def hang_up(self) -> None:
        """It need not ask us any more before it ends."""
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None:
            self._writer.close()


class Keeper:
    """Sees to it that there is a sidecar. `command` and `env` start one; `doors` are for one that takes sockets, None for Envoy."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], doors: Doors | None, say: Callable[[str], None]
    ) -> None:
        self._command = command
        self._env = env
        self._doors = doors
        self._say = say
        self._sidecar: Sidecar | None = None
        self._old: set[asyncio.Task[None]] = set()
        """Those that finish what they have while another has taken their place."""

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        wait = RESTART_BACKOFF_S
        while True:
            if self._doors is not None:
                self._doors.open()
            started_at = loop.time()
            self._sidecar = await self._start()
            code = await self._until_end()
            if loop.time() - started_at > STEADY_S:
                wait = RESTART_BACKOFF_S
            if self._doors is not None:
                self._doors.close_inbound()
            self._say(f"the sidecar ended with exit code {code}; starting it again in {wait:g} s")
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_RESTART_BACKOFF_S)

    async def _start(self) -> Sidecar:
        if self._doors is None:
            process = await child.start(self._command, self._env, stdout=asyncio.subprocess.DEVNULL)
            return Sidecar(process, None, None)
        ours, theirs = socket.socketpair()
        descriptors = (*self._doors.descriptors, theirs.fileno())
        env = {**self._env, inherited.LISTENERS: str(self._doors), inherited.LINE: str(theirs.fileno())}
        try:
            # Its standard output belongs to the program.
            process = await child.start(self._command, env, stdout=asyncio.subprocess.DEVNULL, pass_fds=descriptors)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Sidecar(process, *await asyncio.open_connection(sock=ours))

    async def _until_end(self) -> int:
        """The exit code of a sidecar that ended, and had no successor."""
        while True:
            sidecar = self._sidecar
            assert sidecar is not None
            ended = asyncio.create_task(sidecar.process.wait())
            leaving = asyncio.create_task(sidecar.is_leaving.wait())
            try:
                await asyncio.wait((ended, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                leaving.cancel()
            if sidecar.process.returncode is not None:
                sidecar.hang_up()
                return child.exit_code(sidecar.process)
            await self._replace(sidecar)

    async def _replace(self, sidecar: Sidecar) -> None:
        """Let another sidecar take the place of one that is asked to end; it stays if there is none."""
        successor = await self._start()
        ready = asyncio.create_task(successor.is_ready.wait())
        ended = asyncio.create_task(successor.process.wait())
        try:
            await asyncio.wait((ready, ended), timeout=SUCCESSOR_S, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await successor.stop(0.0)
            raise
        finally:
            ready.cancel()
            ended.cancel()
        if not successor.is_ready.is_set():
            await successor.stop(0.0)
            self._say("the sidecar is asked to end, but one that could take its place does not start; it goes on")
            sidecar.answer(inherited.STAY)
            return
        self._sidecar = successor
        sidecar.answer(inherited.GO)
        self._say("another sidecar has taken the place of the one that was asked to end")
        task = asyncio.create_task(self._see_off(sidecar))
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    async def _see_off(self, sidecar: Sidecar) -> None:
        try:
            await sidecar.process.wait()
        finally:
            await sidecar.stop(0.0)

    def close_inbound(self) -> None:
        """Callers are sent elsewhere: do not let them wait here."""
        if self._doors is not None:
            self._doors.close_inbound()

    async def stop(self, grace_s: float) -> None:
        """End all sidecars."""
        for task in self._old:
            task.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)
        if self._doors is not None:
            self._doors.close()
        if self._sidecar is not None:
            await self._sidecar.stop(grace_s)


def environment_of(secrets: Sequence[str]) -> dict[str, str]:
    """Our own, without what a sidecar need not know."""
    return {**os.environ, **dict.fromkeys(secrets, "")}
