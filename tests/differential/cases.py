"""Case files: what they may hold, read and checked, so that a slip of the pen is an error and not a test that tests nothing."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

FOLDER: Final = Path(__file__).parent / "cases"
_FILE_KEYS: Final = frozenset(("about", "bootstrap", "backends", "warm", "cases"))
_CASE_KEYS: Final = frozenset(
    (
        "name",
        "listener",
        "hello",
        "announce",
        "backend",
        "script",
        "expect",
        "attempts",
        "connections",
        "differs",
        "spread",
        "patience",
        "is_warm",
        "is_loose",
    )
)


@dataclass(frozen=True)
class Case:
    """One entry of a case file."""

    file: str
    name: str
    script: tuple[Any, ...]
    """What the client does, in order; see `client`."""
    listener: str = "main"
    """Which port of the bootstrap the client connects to."""
    hello: bool = True
    """False: preface and SETTINGS are written in the script, or left out."""
    announce: tuple[tuple[str, int], ...] = ()
    """The client's own SETTINGS."""
    backend: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """By backend: its answers, see `backend`."""
    expect: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By engine: one line a stream, and one a connection that was not kept."""
    attempts: tuple[tuple[str, int], ...] = ()
    """Requests that a backend sees."""
    connections: tuple[tuple[str, int], ...] = ()
    """Connections that are made to a backend."""
    differs: str = ""
    """The heading in docs/differences.md that says why the engines differ here; empty if they agree."""
    spread: tuple[tuple[str, float], ...] = ()
    """Share of the calls by backend; compared by chi-square."""
    is_warm: bool = False
    """A call goes before, which is not looked at: the engine has a connection to its upstream then."""
    is_loose: bool = False
    """What backends saw is not compared: how many calls it takes is chance."""
    patience: float = 3.0
    """Seconds to wait for streams to end; shorter where none is expected."""

    @property
    def id(self) -> str:
        return f"{self.file}: {self.name}"


@dataclass(frozen=True)
class CaseFile:
    """One file: a bootstrap, the backends behind it, cases."""

    name: str
    about: str
    bootstrap: Any
    backends: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    """Names, each with the SETTINGS that it announces."""
    cases: tuple[Case, ...]

    @property
    def key(self) -> str:
        """Files with the same key may share their engines."""
        return repr((self.bootstrap, self.backends))


def _check(found: Any, allowed: frozenset[str], where: str) -> None:
    unknown = set(found).difference(allowed)
    if unknown:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; known: {sorted(allowed)}")


def load(path: Path) -> CaseFile:
    """Read a case file. Raises ValueError for what it may not hold."""
    document = _yaml(path)
    _check(document, _FILE_KEYS, path.name)
    bootstrap = document["bootstrap"]
    if isinstance(bootstrap, str):
        bootstrap = _yaml(path.parent / bootstrap)
    backends = tuple(
        (name, tuple(((told or {}).get("announce") or {}).items())) for name, told in document["backends"].items()
    )
    cases = tuple(_case(path.stem, {"is_warm": document.get("warm", False), **item}) for item in document["cases"])
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path.name}: given twice: {sorted(twice)}")
    return CaseFile(path.stem, document["about"], bootstrap, backends, cases)


def _yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def _case(file: str, item: Any) -> Case:
    where = f"{file}: {item.get('name')}"
    _check(item, _CASE_KEYS, where)
    expect = item.get("expect", {})
    if isinstance(expect, list):
        expect = {"envoy": expect, "remora": expect}
    if expect and expect["envoy"] != expect["remora"] and "differs" not in item:
        raise ValueError(f"{where}: different expectations need a reason in `differs`")
    if not expect and "spread" not in item:
        raise ValueError(f"{where}: expects nothing")
    return Case(
        file=file,
        name=item["name"],
        script=tuple(item["script"]),
        listener=item.get("listener", "main"),
        hello=item.get("hello", True),
        announce=tuple(item.get("announce", {}).items()),
        backend=tuple((name, tuple(answers)) for name, answers in item.get("backend", {}).items()),
        expect=tuple((engine, tuple(lines)) for engine, lines in expect.items()),
        attempts=tuple(item.get("attempts", {}).items()),
        connections=tuple(item.get("connections", {}).items()),
        differs=item.get("differs", ""),
        spread=tuple(item.get("spread", {}).items()),
        patience=item.get("patience", 3.0),
        is_warm=item["is_warm"],
        is_loose=item.get("is_loose", False),
    )


@cache
def all_files(folder: Path = FOLDER) -> list[CaseFile]:
    """Every case file of a folder; a file without `cases` is a bootstrap that others name."""
    return [load(path) for path in sorted(folder.glob("*.yaml")) if "\ncases:" in path.read_text(encoding="utf-8")]
