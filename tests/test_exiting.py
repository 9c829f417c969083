"""The tests' own guard against a run that does not end."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAITS_FOR_EVER = """
import threading
from tests.exiting import end_within

end_within({seconds})
threading.Thread(target=threading.Event().wait, args=({wait},), name="left over").start()
"""


def run(seconds: float, wait: float) -> subprocess.CompletedProcess[str]:
    script = WAITS_FOR_EVER.format(seconds=seconds, wait=wait)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_a_process_that_waits_at_its_exit_is_ended_and_says_where_it_waited() -> None:
    done = run(seconds=0.5, wait=3600)
    assert done.returncode == 1
    assert "wait" in done.stderr and "Timeout" in done.stderr


def test_a_process_that_ends_is_left_alone() -> None:
    done = run(seconds=50, wait=0.01)
    assert (done.returncode, done.stderr) == (0, "")
