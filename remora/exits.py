"""Exit codes of every command; scripts rely on them."""

from typing import Final

DONE: Final = 0
NO: Final = 1
"""Done, and the answer is no, or failed."""
BAD_INPUT: Final = 2
UNREACHABLE: Final = 3
"""The control plane or the store cannot be reached."""
TIME_OVER: Final = 4
INTERRUPTED: Final = 130
