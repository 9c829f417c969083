"""Plain or compiled: the hot modules have one source, which runs as Python, or as the C that mypyc makes of it (`make compile`).

The compiled ones are used if they are there and none is older than its source, all of them or none; `REMORA_PURE=1` turns them off.
They stand apart from their sources, in `build/compiled`, so that which ones run is decided here and not by the order of file suffixes.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_BUILT: Final = _ROOT / "build" / "compiled"
_SUFFIX: Final = EXTENSION_SUFFIXES[0]

is_compiled: bool = False
"""True if this process runs the compiled modules."""


class _Finder:
    """Finds modules by name in a table of files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return spec_from_file_location(fullname, file) if file is not None else None


def _fresh_files() -> dict[str, Path]:
    """Compiled modules by name; empty if there are none, or one is older than its source."""
    found: dict[str, Path] = {}
    for file in _BUILT.rglob("*" + _SUFFIX):
        place = file.relative_to(_BUILT)
        name = ".".join((*place.parts[:-1], place.name.removesuffix(_SUFFIX)))
        source = _ROOT / place.parent / (place.name.removesuffix(_SUFFIX) + ".py")
        if len(place.parts) > 1 and (not source.exists() or source.stat().st_mtime > file.stat().st_mtime):
            return {}
        found[name] = file
    return found


def use() -> None:
    """Let the compiled modules be imported from now on, if they may be."""
    global is_compiled
    files = {} if os.environ.get("REMORA_PURE") == "1" else _fresh_files()
    if files:
        sys.meta_path.insert(0, _Finder(files))
        is_compiled = True
