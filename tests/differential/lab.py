"""Both engines on one bootstrap, each with backends of its own, kept for all cases that need them."""

import asyncio
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

from tests.differential import engines
from tests.differential.backend import Backend
from tests.differential.cases import Case, CaseFile
from tests.differential.client import Client, Outcome
from tests.differential.engines import ENGINES, Engine

_NAME = re.compile(r"\$\{(\w+)\}")


def _names(tree: Any) -> set[str]:
    """Every ${name} in a bootstrap."""
    if isinstance(tree, dict):
        return set().union(*map(_names, tree.values())) if tree else set()
    if isinstance(tree, list):
        return set().union(*map(_names, tree)) if tree else set()
    return set(_NAME.findall(tree)) if isinstance(tree, str) else set()


def fill(tree: Any, ports: dict[str, int]) -> Any:
    """The bootstrap with ports in the place of ${name}."""
    if isinstance(tree, dict):
        return {key: fill(value, ports) for key, value in tree.items()}
    if isinstance(tree, list):
        return [fill(value, ports) for value in tree]
    whole = _NAME.fullmatch(tree) if isinstance(tree, str) else None
    return ports[whole[1]] if whole else tree


class Rig:
    """One engine with its ports and backends. Names that begin with `dead` are ports that refuse connections."""

    def __init__(self, name: str, file: CaseFile, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.engine: Engine | None = None
        self.ports: dict[str, int] = {}
        self.backends = {name: Backend(name, dict(told)) for name, told in file.backends}
        self._file = file
        self._held: list[socket.socket] = []

    async def open(self) -> None:
        """Backends first, then the engine; it may not be ready yet."""
        self.folder.mkdir()
        for name, backend in self.backends.items():
            await backend.open()
            self.ports[name] = backend.port
        for name in sorted(_names(self._file.bootstrap).difference(self.backends)):
            self.ports[name] = self._hold()
        self.engine = engines.launch(self.name, fill(self._file.bootstrap, self.ports), self.folder)

    @property
    def listeners(self) -> list[int]:
        """The ports that the engine listens on."""
        return [port for name, port in self.ports.items() if name not in self.backends and not name.startswith("dead")]

    def _hold(self) -> int:
        """A port that nobody else gets while this runs. The engine can bind it, as both sides allow reuse and this one never listens."""
        held = socket.socket()
        self._held.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Stop all."""
        if self.engine is not None:
            self.engine.stop()
        for backend in self.backends.values():
            backend.close()
        for held in self._held:
            held.close()

    async def run(self, case: Case) -> Outcome:
        """One case on this engine."""
        outcome = await Client(case, self.ports[case.listener], self.backends, self.ports.get("admin", 0)).run()
        assert self.engine is not None
        assert self.engine.is_running, f"{self.name} died of {case.id}:\n{self.engine.log.read_text()[-4000:]}"
        return outcome


class Lab:
    """Both engines."""

    def __init__(self, file: CaseFile) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="differential-")
        self._runner = asyncio.Runner()
        self.rigs = [Rig(name, file, Path(self._folder.name) / name) for name in ENGINES]
        try:
            for rig in self.rigs:
                self._runner.run(rig.open())
            for rig in self.rigs:
                assert rig.engine is not None
                engines.wait_ready(rig.engine, rig.listeners)
        except BaseException:
            self.close()
            raise

    def run(self, case: Case) -> dict[str, Outcome]:
        """One case on both, at the same time."""
        return self._runner.run(self._run(case))

    async def _run(self, case: Case) -> dict[str, Outcome]:
        outcomes = await asyncio.gather(*(rig.run(case) for rig in self.rigs))
        return {rig.name: outcome for rig, outcome in zip(self.rigs, outcomes, strict=True)}

    def close(self) -> None:
        """Stop all and leave nothing."""
        for rig in self.rigs:
            rig.close()
        self._runner.close()
        self._folder.cleanup()
