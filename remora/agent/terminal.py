"""Lending the terminal to a program that wants to read from it.

A program stands in a process group of its own, so that Ctrl-C reaches us alone and it can be drained. The price: it is in the background,
and who reads from a terminal there is stopped (SIGTTIN). So one that is stopped gets the foreground, and from then on Ctrl-C too; a
server, which reads nothing, never does.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.1
_STOPPED: Final = "T"


def is_there() -> bool:
    """True if standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == _STOPPED
    except OSError:
        return False


async def lend(group: int) -> None:
    """As long as this runs, a stopped process group gets the foreground, if it is ours to give; cancelled, we take it back."""
    terminal, ours = sys.stdin.fileno(), os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # who takes the foreground from the background gets that
    try:
        while True:
            with contextlib.suppress(OSError):  # the terminal was closed
                if _is_stopped(group) and os.tcgetpgrp(terminal) in (ours, group):
                    os.tcsetpgrp(terminal, group)
                    os.killpg(group, signal.SIGCONT)
            await asyncio.sleep(LOOK_S)
    finally:
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(terminal) == group:
                os.tcsetpgrp(terminal, ours)
