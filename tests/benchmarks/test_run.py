"""The bench as a program: a row is measured, failures are no figures, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import ROOT, Processes
from benchmarks.proxies import Wiring, bootstrap
from tests.ports import free_ports
from tests.tools import need
from tests.waiting import eventually

TIMEOUT_S = 60.0


def _started_in(folder: Path) -> list[str]:
    """Command lines that name a folder: what the bench starts does, as its configuration and documents are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def _bench(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_quick_row_gives_figures_a_page_and_leaves_no_process(tmp_path: Path) -> None:
    need("h2load")
    need("nghttpd")
    scratch, output = tmp_path / "scratch", tmp_path / "output"
    scratch.mkdir()
    words = ["unary-10", "--rounds", "2", "--scale", "0.02", "--peers", "direct,sidecar", "--output", str(output)]
    bench = _bench(scratch, *words)
    said, complaints = bench.communicate(timeout=TIMEOUT_S)
    assert bench.returncode == 0, complaints
    assert "unary-10 CPU per call, µs: sidecar " in said
    run: dict[str, Any] = json.loads((output / "latest.json").read_text())
    [row] = run["rows"]
    assert [set(sample) for sample in row["samples"]["direct"]] == [{"calls_per_s", "mb_per_s"}] * 2
    assert all(1 < sample["cpu_us"] < 100_000 for sample in row["samples"]["sidecar"])
    assert "| sidecar | " in (output / "README.md").read_text()
    assert (output / "cpu.svg").exists()
    assert _started_in(scratch) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_all_that_it_started(tmp_path: Path, number: signal.Signals) -> None:
    need("h2load")
    need("nghttpd")
    bench = _bench(tmp_path, "unary-10", "--rounds", "1000", "--peers", "sidecar")
    try:
        eventually(
            lambda: len(_started_in(tmp_path)) >= 3, timeout_s=TIMEOUT_S, message="load, sidecar and backend run"
        )
        bench.send_signal(number)
        _, complaints = bench.communicate(timeout=TIMEOUT_S)
    finally:
        bench.kill()
    assert bench.returncode == 130, complaints
    assert _started_in(tmp_path) == []


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    for words in (["unary-11"], ["--peers", "traefik"]):
        bench = _bench(tmp_path, *words)
        _, complaints = bench.communicate(timeout=TIMEOUT_S)
        assert bench.returncode == 2
        assert words[-1] in complaints


@pytest.mark.parametrize("kind", ["closed", "streams", "open"])
def test_calls_that_fail_give_an_error_and_no_figure(tmp_path: Path, kind: str) -> None:
    [nobody] = free_ports(1)
    with Processes(tmp_path) as processes:
        port, path = bootstrap(processes, Wiring(nobody))
        sidecar = processes.start([str(Path(sys.executable).parent / "remora"), "sidecar", "-c", str(path)])
        sidecar.await_port(port)
        words = [sys.executable, "-m", "benchmarks.load", kind, "--port", str(port), "--calls", "10"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "grpc-status" in done.stderr and "14" in done.stderr
