"""The part of requirements.lock that a program needs to run: `runtime_lock.py requirements.lock remora[transactions] > runtime.lock`.

The lock file is for everything, tests and generators included. What is needed of it is found by the metadata of what is installed,
so this runs in an environment that has all of it (`make install`).
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(root: str) -> set[str]:
    """Names of the packages that a requirement leads to, itself left out."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [Requirement(root)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}{sorted(requirement.extras)}"
        if key in seen:
            continue
        seen.add(key)
        found.add(name)
        try:
            of_it = requires(name) or []
        except PackageNotFoundError:
            raise SystemExit(f"runtime_lock: {name} is needed and not installed; run `make install` first") from None
        for each in map(Requirement, of_it):
            if each.marker is None or _holds(each.marker, requirement.extras):
                waiting.append(each)
    return found - {canonicalize_name(Requirement(root).name)}


def _holds(marker: Marker, extras: set[str]) -> bool:
    return any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def part(lock: str, names: set[str]) -> str:
    """The lines of a lock file that are about some packages. Raises SystemExit if one is not locked."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    kept = [block for block in blocks if canonicalize_name(re.split(r"[=\s\[]", block)[0]) in names]
    missing = names - {canonicalize_name(re.split(r"[=\s\[]", block)[0]) for block in kept}
    if missing:
        raise SystemExit(f"runtime_lock: not in the lock file: {', '.join(sorted(missing))}")
    return "".join(kept)


if __name__ == "__main__":
    print(part(Path(sys.argv[1]).read_text(), needed(sys.argv[2])), end="")
