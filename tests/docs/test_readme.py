"""The README's tour is true: every block is run, in order, in one shell, as a reader would type it."""

import json
import os
import re
import signal
import subprocess
from socket import create_connection
from typing import Any, Final

import pytest

from tests.mesh import environment, tree
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


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block printed, after all of them ran well in a copy of the checkout."""
    scratch = tmp_path_factory.mktemp("checkout")
    for each in ROOT.iterdir():
        if each.name != ".demo":
            (scratch / each.name).symlink_to(each)
    env = environment(HOME=str(scratch))
    env.pop("REMORA_SERVER", None)
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
    assert code == 0, text
    assert "Traceback" not in text, text
    return re.split(rf"^{MARK}\d+\n", text, flags=re.MULTILINE)[1:]


def of(output: list[str], command: str) -> str:
    """What the block that holds a command printed."""
    return next(text for block, text in zip(blocks(), output, strict=True) if command in block)


def shoppers(text: str) -> dict[str, Any]:
    """The last line that the shoppers printed."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_the_tour_runs_from_its_first_block_to_its_last(output: list[str]) -> None:
    assert len(output) == len(blocks()) >= 8


def test_every_service_is_found_and_connected(output: list[str]) -> None:
    status = of(output, "remora status")
    for service in ("accounts.shop", "orders.shop", "warehouse.shop"):
        assert f"{service}~" in status
    assert status.count("warehouse.shop~") in (1, 2)  # the tour goes on when the first one is there


def test_the_shoppers_buy_without_a_failure(output: list[str]) -> None:
    said = shoppers(of(output, "--rate 40 --for 3s\n"))
    assert set(said["outcomes"]) == {"OK"} and said["outcomes"]["OK"] > 60


def test_the_split_is_followed(output: list[str]) -> None:
    said = shoppers(of(output, "split-90-10.yaml\nremora get"))
    counts = {"v1": 0, "v2": 0}
    for name, count in said["spread"].items():
        counts[name.partition("/")[0]] += count
    share = counts["v2"] / sum(counts.values())
    assert 0.01 < share < 0.25, counts
    assert "acknowledged by" in of(output, "split-90-10.yaml\nremora get")


def test_the_rate_limit_refuses_some(output: list[str]) -> None:
    said = shoppers(of(output, "limit-orders.yaml"))
    assert said["outcomes"]["RESOURCE_EXHAUSTED"] > 0 and said["outcomes"]["OK"] > 0


def test_the_mistake_is_refused_with_its_line(output: list[str]) -> None:
    text = of(output, "mistake.yaml")
    assert re.search(r"\.demo/mistake\.yaml:\d+: .*weight", text) and "exit code 2" in text


def test_the_money_is_all_there(output: list[str]) -> None:
    assert "money" in of(output, "apps.bookstore.audit")
