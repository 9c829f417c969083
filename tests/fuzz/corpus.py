"""The inputs that are kept for each target: one a line, in hexadecimal, in `corpus/TARGET.hex`."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"


def load(name: str) -> list[bytes]:
    """Those of a target."""
    return [bytes.fromhex(line) for line in (FOLDER / f"{name}.hex").read_text(encoding="ascii").splitlines()]


def save(name: str, inputs: list[bytes]) -> None:
    """Short ones first, each once."""
    kept = sorted(set(inputs), key=lambda data: (len(data), data))
    (FOLDER / f"{name}.hex").write_text("".join(f"{data.hex()}\n" for data in kept), encoding="ascii")
