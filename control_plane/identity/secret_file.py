"""Files that hold secrets: whole or not at all, and never readable by others."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

MODE: Final = 0o600


def write(path: Path, data: bytes) -> None:
    """Put a file in place of the old one. Whoever reads meanwhile, or after a power cut, sees one of the two. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")  # one writer in a process
    with suppress(FileNotFoundError):
        beside.unlink()  # of a process with our number, which did not get further
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise
