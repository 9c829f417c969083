"""Search for bytes that break a target: `python -m tests.fuzz TARGET [options of libFuzzer]`; needs `pip install atheris`.

What it finds interesting goes into the target's file under `corpus/`, and is replayed by `make test` from then on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import corpus


def search(name: str, options: list[str]) -> int:
    """Fuzz in a process of its own, as libFuzzer never returns; keep what it found."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number, data in enumerate(corpus.load(name)):
            (Path(folder) / f"kept-{number}").write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz", "--inside", name, *options, folder]
        ended = subprocess.run(command, check=False).returncode
        corpus.save(name, [path.read_bytes() for path in Path(folder).iterdir()])
    return ended


def inside(name: str, options: list[str]) -> None:
    """Run libFuzzer on a target."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["sidecar"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if sys.argv[1:2] == ["--inside"]:
    inside(sys.argv[2], sys.argv[3:])
elif len(sys.argv) > 1 and (corpus.FOLDER / f"{sys.argv[1]}.hex").exists():
    sys.exit(search(sys.argv[1], sys.argv[2:]))
else:
    sys.exit(f"a target is needed: {', '.join(sorted(path.stem for path in corpus.FOLDER.glob('*.hex')))}")
