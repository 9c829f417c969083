"""A run of tests ends, whatever is left over: gRPC's core waits at exit for threads of a server or a channel that a failed test did not close."""

import faulthandler
import sys
from typing import Final

LONGEST_EXIT_S: Final = 60.0


def end_within(seconds: float = LONGEST_EXIT_S) -> None:
    """If this process is still there then, say where its threads wait, and end it with exit code 1."""
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
