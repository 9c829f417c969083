"""The secret of the user who runs a control plane: whoever can read it is that user, on that machine.

`remora up` writes it where only its user can read it, and takes it away at its end. By it `remora run` on the same machine gets its identity without
a token, and operators' commands are known as such. It is sent to loopback addresses only: no other machine gets to see it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from control_plane.identity import secret_file
from remora import environment

VARIABLE: Final = environment.OPERATOR_SECRET
"""Instead of the file, for operators elsewhere."""


def _file(port: int) -> Path:
    return environment.state_directory() / "local" / str(port)


def made() -> str:
    """A new one, or the one that the environment gives: replicas that share it know the same operators."""
    return os.environ.get(VARIABLE) or secrets.token_urlsafe(32)


@contextmanager
def kept(secret: str, port: int) -> Iterator[None]:
    """In its file, as long as the context lasts. Raises OSError."""
    file = _file(port)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret_file.write(file, secret.encode())
    try:
        yield
    finally:
        if _read(file) == secret:
            file.unlink(missing_ok=True)


def find(host: str, port: int) -> str:
    """The secret for a control plane at this address; empty if there is none for us."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    return _read(_file(port)) if _is_loopback(host) else ""


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
