"""Where and with what a run was made."""

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.processes import ROOT, find
from benchmarks.proxies import envoy_binary


def _said(words: list[str]) -> str:
    """What a program says of itself, or nothing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10.0, check=False, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _number(text: str) -> str:
    """The first thing in it that looks like a version."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else ""


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class OthersCpu:
    """CPU that other programs used meanwhile: how far the figures of a run can be trusted."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy = _busy_s()
        self._own = sum(os.times()[:4])

    def cores(self) -> float:
        """Cores in use by others, on average since the start. Ask when all processes of the bench have ended."""
        seconds = time.monotonic() - self._start
        others = (_busy_s() - self._busy) - (sum(os.times()[:4]) - self._own)
        return max(0.0, others / seconds) if seconds > 0 else 0.0


def _busy_s() -> float:
    """Seconds that all CPUs of the machine were not idle, since it started (proc(5): user nice system idle iowait irq softirq steal)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """The machine: CPU, cores, memory, kernel."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", info)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) / 2**20:.1f} GiB" if memory else "",
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """What was measured, and with what; a program that is not there is left out."""
    from sidecar.compiled import is_compiled

    binary = envoy_binary()
    found = {
        "remora": _said(["git", "describe", "--always", "--dirty"]).strip()
        + (" (compiled)" if is_compiled else " (plain Python)"),
        "python": platform.python_version(),
        "uvloop": _package("uvloop"),
        "grpcio": _package("grpcio"),
        "envoy": _number(_said([str(binary), "--version"]).partition("version:")[2].partition("/")[2])
        if binary
        else "",
        "haproxy": _number(_said([find("haproxy") or "haproxy", "-v"])),
        "nginx": _number(_said([find("nginx") or "nginx", "-v"])),
        "nghttp2": _number(_said([find("h2load") or "h2load", "--version"])),
    }
    return {name: text for name, text in found.items() if text}
