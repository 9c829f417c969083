"""The README's tour is true: every block is run, in order, in one shell, as a reader would type it."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from socket import create_connection
from typing import Any, Final

import pytest

from remora.agent.child import tree
from tests.mesh import environment
from tests.tools import ROOT, find

USUAL_PORTS: Final = (15010, 15014)
TIMEOUT_S: Final = 240
MARK: Final = "=== block "
_BLOCK: Final = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """Every `bash` block of the README."""
    return _BLOCK.findall((ROOT / "README.md").read_text())


def script() -> str:
    """All blocks as one script; the set-up itself has been done."""
    parts = ["set -euo pipefail"]
    for number, block in enumerate(blocks()):
        parts += [f"echo '{MARK}{number}'", block.replace("make install\n", "")]
    return "\n".join(parts)


def isolated() -> list[str]:
    """The tour uses the usual ports: in a network of its own if that may be had, else only if they are free."""
    unshare, ip = find("unshare"), find("ip")
    if os.geteuid() == 0 and unshare and ip:
        command = [unshare, "--net", "bash", "-c", f'{ip} link set lo up && exec bash "$@"', "bash"]
        if subprocess.run([*command, "-c", "true"], capture_output=True).returncode == 0:
            return command
    for port in USUAL_PORTS:
        try:
            create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            continue
        pytest.skip(f"port {port} is in use, and this may not make a network of its own: the tour was not run")
    return ["bash"]


def run(scratch: Path) -> list[str]:
    """Run all blocks in a copy of the checkout; what each of them printed. They must run well."""
    for each in ROOT.iterdir():
        if each.name != ".demo":
            (scratch / each.name).symlink_to(each)
    env = environment(HOME=str(scratch), TMPDIR=str(scratch))
    with (scratch / "output").open("w") as out:
        process = subprocess.Popen(
            [*isolated(), "-c", script()], cwd=scratch, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
        try:
            code = process.wait(TIMEOUT_S)
        finally:
            for pid in tree(process.pid) if process.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            process.wait()
    text = (scratch / "output").read_text()
    assert code == 0 and "Traceback" not in text, f"exit code {code}:\n{text}"
    return re.split(rf"^{MARK}\d+\n", text, flags=re.MULTILINE)[1:]


def shoppers(text: str) -> dict[str, Any]:
    """The last line that the shoppers printed."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_the_tour_is_true_from_its_first_block_to_its_last(tmp_path: Path) -> None:
    output = run(tmp_path)
    assert len(output) == len(blocks()) >= 8

    def of(command: str) -> str:
        """What the block that holds a command printed."""
        return next(text for block, text in zip(blocks(), output, strict=True) if command in block)

    # Every service is found and connected; the tour goes on when the first of the two warehouses is there.
    assert {"accounts.shop", "orders.shop", "warehouse.shop"} <= set(re.findall(r"(\w+\.shop)~", of("remora status")))
    # The shoppers buy without a failure.
    said = shoppers(of("--rate 40 --for 3s\n"))
    assert set(said["outcomes"]) == {"OK"} and said["outcomes"]["OK"] > 60
    # The split is followed.
    text = of("split-90-10.yaml\nremora get")
    counts = {"v1": 0, "v2": 0}
    for name, count in shoppers(text)["spread"].items():
        counts[name.partition("/")[0]] += count
    assert 0.01 < counts["v2"] / sum(counts.values()) < 0.25, counts
    assert "acknowledged by" in text
    # The limit refuses some.
    outcomes = shoppers(of("limit-orders.yaml"))["outcomes"]
    assert outcomes["RESOURCE_EXHAUSTED"] > 0 and outcomes["OK"] > 0
    # The mistake is refused with its line.
    text = of("mistake.yaml")
    assert re.search(r"\.demo/mistake\.yaml:\d+: .*weight", text) and "exit code 2" in text
    assert "money" in of("apps.bookstore.audit")
