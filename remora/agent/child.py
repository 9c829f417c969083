"""Child processes that end with their parent, whatever happens to it."""

import asyncio
import ctypes
import os
import pwd
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


def _in_own_group(parent: int, user: pwd.struct_passwd | None) -> Callable[[], None]:
    """What a child does before it becomes its program: leave the terminal's group, and ask to end with its parent."""

    def set_up() -> None:
        os.setpgid(0, 0)
        if user is not None:  # uvloop's subprocesses have no `user`
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        if _libc is not None and hasattr(_libc, "prctl"):
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # the parent ended between fork and here

    return set_up


async def start(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: int | None = None,
    stderr: int | None = None,
    user: str | None = None,
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """Start a child in a process group of its own, so that Ctrl-C reaches only the parent, which decides the order.

    `stdout` and `stderr` as in asyncio's subprocesses; None is ours. `user`: who the child is; None is us. `pass_fds`: files
    that stay open in it, under the same numbers. Raises OSError.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        env=dict(env),
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        preexec_fn=_in_own_group(os.getpid(), None if user is None else pwd.getpwnam(user)),
    )


async def stop(process: asyncio.subprocess.Process, grace_s: float) -> int:
    """SIGTERM, then SIGKILL when the grace is over; the exit code as a shell says it."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
    return exit_code(process)


def exit_code(process: asyncio.subprocess.Process) -> int:
    """A shell's view: 128 + n for a process that signal n ended."""
    code = process.returncode
    assert code is not None
    return code if code >= 0 else 128 - code


def tree(pid: int) -> list[int]:
    """A process and all below it, the lowest last, as Linux tells it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for number in children:
            found += tree(int(number))
    return found
