"""h2load as the load, read strictly: a call that did not succeed, or bytes that did not come back, are an error."""

import re
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.load.wire import LoadError
from benchmarks.processes import find, on_cpus

TIMEOUT_S: Final = 300.0
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def connections_for(in_flight: int) -> tuple[int, int]:
    """(connections, calls on each): four connections, as many callers have; more where 100 calls on each are not enough."""
    if in_flight < 4:
        return 1, in_flight
    if in_flight < 100:
        return 2, in_flight // 2
    return max(4, in_flight // 100), min(100, in_flight // 4)


def run(
    port: int, path: str, *, calls: int, in_flight: int, body: Path, is_tls: bool, cpus: frozenset[int] | None
) -> float:
    """Unary calls, the next as soon as one ends, all with this body and an answer of its size; returns their seconds.

    Raises LoadError.
    """
    program = find("h2load")
    if program is None:
        raise LoadError("h2load is not installed; `make tools` installs it")
    connections, streams = connections_for(in_flight)
    words = [program, "-n", str(calls), "-c", str(connections), "-m", str(streams), "-d", str(body)]
    words += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    words += [f"{'https' if is_tls else 'http'}://127.0.0.1:{port}{path}"]
    with on_cpus(cpus):
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return read(done.stdout, calls, calls * body.stat().st_size)


def read(output: str, calls: int, data_bytes: int) -> float:
    """The seconds that a run took. Raises LoadError if it did not do all that it should."""
    time = re.search(r"finished in ([\d.]+)(us|ms|s|m)\b", output)
    succeeded = re.search(r"(\d+) succeeded", output)
    two_hundreds = re.search(r"(\d+) 2xx", output)
    data = re.search(r"\((\d+)\) data", output)
    if time is None or succeeded is None or two_hundreds is None or data is None:
        raise LoadError(f"h2load did not finish: {' '.join(output.split())[-200:] or 'it said nothing'}")
    if int(succeeded[1]) != calls or int(two_hundreds[1]) != calls:
        raise LoadError(f"{succeeded[1]} of {calls} calls succeeded, {two_hundreds[1]} with HTTP status 2xx")
    if int(data[1]) != data_bytes:
        # A refusal of gRPC is HTTP 200 without a message: it shows here.
        raise LoadError(
            f"{data[1]} bytes of messages came back, not {data_bytes}: some calls ended without their answer"
        )
    return float(time[1]) * _UNITS_S[time[2]]
