"""CPU and memory of a process tree."""

import os
import sys
import time
from pathlib import Path

from benchmarks.processes import BenchError, Processes
from tests.waiting import eventually

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BURN = (
    "import os, time\nos.fork()\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
)


def test_cpu_is_that_of_the_whole_tree_as_the_kernel_counts_it(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        burner = processes.start([sys.executable, "-c", BURN])
        eventually(lambda: burner.cpu_s() >= 0.6, message="parent and child burn 0.3 s each")
        [children] = [path.read_text().split() for path in Path(f"/proc/{burner.pid}/task").glob("*/children")]
        ticks = 0
        for pid in (burner.pid, *map(int, children)):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        assert abs(burner.cpu_s() - ticks * TICK_S) <= 4 * TICK_S
        assert burner.rss_mib() > 5


def test_leaving_ends_children_of_children_too(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        parent = processes.start([sys.executable, "-c", "import os, time\nos.fork()\ntime.sleep(60)"])
        children = eventually(lambda: Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    for pid in (parent.pid, *map(int, children)):
        eventually(lambda pid=pid: _is_gone(pid), message=f"{pid} ends")  # type: ignore[misc]


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_program_that_ends_early_says_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        broken = processes.start([sys.executable, "-c", "print('no such flag'); raise SystemExit(3)"])
        before = time.monotonic()
        try:
            broken.await_port(1)
        except BenchError as error:
            assert "ended with 3: no such flag" in str(error)
        else:
            raise AssertionError("it was waited for in vain")
        assert time.monotonic() - before < 10
