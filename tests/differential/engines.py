"""Real Envoy and our sidecar as processes, started from the same bootstrap."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection
from typing import Any, Final

from tests.tools import envoy
from tests.waiting import eventually

ENGINES: Final = ("envoy", "remora")
START_TIMEOUT_S: Final = 30.0
REFUSAL_TIMEOUT_S: Final = 10.0
"""An engine that has not ended by then runs."""
STOP_TIMEOUT_S: Final = 10.0


@dataclass
class Engine:
    """A proxy process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End it, however it takes that."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


def command(name: str, bootstrap: Path) -> list[str]:
    """How an engine is started."""
    if name == "envoy":
        return [envoy(), "-c", str(bootstrap), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]
    return [sys.executable, "-m", "remora", "sidecar", "-c", str(bootstrap)]


def launch(name: str, bootstrap: Any, folder: Path) -> Engine:
    """Start an engine; it may not be ready yet."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(bootstrap, indent=1))
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command(name, path), stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    return Engine(name, process, log)


def wait_ready(engine: Engine, ports: list[int]) -> None:
    """Wait until every port is listened on. Raises AssertionError with the engine's log."""
    for port in ports:

        def is_settled(port: int = port) -> bool:
            return _accepts(port) or not engine.is_running

        eventually(is_settled, timeout_s=START_TIMEOUT_S, message=f"{engine.name} does not listen on {port}")
        assert engine.is_running, f"{engine.name} ended with {engine.process.returncode}:\n{engine.log.read_text()}"


def start(name: str, bootstrap: Any, ports: list[int], folder: Path) -> Engine:
    """Start an engine and wait until every port is listened on."""
    engine = launch(name, bootstrap, folder)
    try:
        wait_ready(engine, ports)
    except BaseException:
        engine.stop()
        raise
    return engine


def refuses(engine: Engine) -> bool:
    """True if a launched engine ends by itself because it does not take its bootstrap."""
    try:
        return engine.process.wait(REFUSAL_TIMEOUT_S) != 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        engine.stop()


def _accepts(port: int) -> bool:
    try:
        with create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
