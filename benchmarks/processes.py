"""Programs that the bench starts: what CPU and memory their process trees use, and that none of them is left behind."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Final

from remora.agent import ports
from remora.agent.child import tree

ROOT: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = os.pathsep.join([str(ROOT / ".tools" / "bin"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
STOP_TIMEOUT_S: Final = 5.0
"""After SIGTERM; then comes SIGKILL."""
READY_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.01
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A row cannot be measured; the text says why."""


def find(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=_PLACES)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    return ports.free(1)[0]


def _cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads, also those that ended: utime + stime of /proc/PID/stat, in ns."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        return 0.0


def _rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


@contextlib.contextmanager
def on_cpus(cpus: frozenset[int] | None) -> Iterator[None]:
    """What is started inside runs on these CPUs only; None changes nothing."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _die_with_parent() -> None:
    """In the child, before its program: end when the bench ends, however it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running program, in a session of its own so that Ctrl-C reaches the bench first."""

    def __init__(self, words: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        self.name = Path(words[0]).name
        self._log = log
        self._output: IO[bytes] = log.open("wb")
        self.started = time.perf_counter()
        self._popen = subprocess.Popen(
            words,
            cwd=ROOT,
            # Python keeps its bytecode, as where it is installed: else each start would compile our modules again.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **variables},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.pid = self._popen.pid

    def cpu_s(self) -> float:
        """CPU seconds of the whole tree since it started."""
        return sum(_cpu_s(pid) for pid in tree(self.pid))

    def rss_mib(self) -> float:
        """Resident memory of the whole tree, MiB; pages that processes share count in each."""
        return sum(_rss_bytes(pid) for pid in tree(self.pid)) / 2**20

    def check(self) -> None:
        """Raises BenchError if the program has ended."""
        code = self._popen.poll()
        if code is not None:
            last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise BenchError(f"{self.name} ended with {code}: {' / '.join(last) or 'it said nothing'}")

    def await_port(self, port: int) -> None:
        """Return when it accepts on the port. Raises BenchError if it ends before, or takes too long."""
        end = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < end:
            self.check()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            time.sleep(_POLL_S)
        raise BenchError(f"{self.name} does not listen on port {port} after {READY_TIMEOUT_S:g} s")

    def stop(self) -> None:
        """End it and what it started, by pid."""
        pids = tree(self.pid) if self._popen.poll() is None else []
        self._popen.terminate()
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._output.close()


class Processes:
    """All that runs now; leaving the context ends it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        """Where configurations and logs go."""
        self._running: list[Process] = []
        self._started = 0

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(list(self._running))

    def start(
        self,
        words: Sequence[str],
        cpus: frozenset[int] | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> Process:
        """Start a program, on these CPUs if any are given, with these environment variables on top of ours."""
        self._started += 1
        log = self.scratch / f"{self._started:03d}-{Path(words[0]).name}.log"
        with on_cpus(cpus):
            process = Process(words, log, variables)
        self._running.append(process)
        return process

    def stop(self, processes: Sequence[Process]) -> None:
        """End these."""
        for process in reversed(processes):
            process.stop()
            if process in self._running:
                self._running.remove(process)
