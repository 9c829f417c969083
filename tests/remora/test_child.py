"""Children of a process that has much else to do."""

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SCRIPT: Final = """
import sys
from remora import environment
environment.prepare()
import asyncio, os
from pathlib import Path
import grpc
import uvloop
from remora.agent import child
from remora.agent.secrets import SecretsServer

async def call(channel):
    method = channel.unary_unary("/not/there")
    while True:
        try:
            await method(b"x")
        except grpc.aio.AioRpcError:
            pass

async def main():
    socket = Path(sys.argv[1]) / "s"
    await SecretsServer(socket).start()
    channel = grpc.aio.insecure_channel(f"unix:{socket}")
    callers = [asyncio.create_task(call(channel)) for _ in range(8)]
    codes = []
    for _ in range(200):
        process = await child.start(["true"], environment.inherited())
        codes.append(await process.wait())
    print(sum(code != 0 for code in codes), flush=True)
    os._exit(0)

uvloop.run(main())
"""


def test_a_child_starts_whatever_its_parent_says_by_grpc_meanwhile(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr
