"""`remora tx coordinator` with its log in etcd: replicas see to each other's transactions."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from apps.transactions.client import Transactions
from proto.transactions.v1 import coordinator_pb2 as pb
from tests.apps.transactions import bank
from tests.apps.transactions.bank import request
from tests.apps.transactions.live import participant
from tests.etcd import etcd_cluster
from tests.ports import free_ports
from tests.waiting import eventually_async


async def start(directory: Path, log: str, name: str) -> tuple[asyncio.subprocess.Process, str]:
    """A replica and its address."""
    said = directory / f"{name}.log"
    with said.open("w") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "remora", "tx", "coordinator", "--listen", "127.0.0.1:0"),
            *("--log", log, "--name", name),
            stderr=sink,
        )

    def listening() -> re.Match[str] | None:
        assert process.returncode is None, said.read_text()
        return re.search(r"listening on (\S+)\n", said.read_text())

    found = await eventually_async(listening)
    assert found is not None
    return process, found[1]


async def test_a_replica_that_is_killed_leaves_its_transactions_to_the_other(tmp_path: Path) -> None:
    with etcd_cluster(tmp_path / "etcd", size=1) as etcd:
        first, target = await start(tmp_path, etcd.target, "one")
        second, other_target = await start(tmp_path, etcd.target, "two")
        coordinator, other = Transactions(target, wait_s=0), Transactions(other_target)
        port = free_ports(1)[0]
        try:
            url = f"grpc://127.0.0.1:{port}/{bank.SERVICE}"
            branch = pb.Branch(
                name="debit",
                forward=pb.Call(target=f"{url}/Move", body=request("reader", -30)),
                undo=pb.Call(target=f"{url}/MoveBack", body=request("reader", -30)),
            )
            for number in range(20):
                await coordinator.stub.Submit(pb.SubmitRequest(gid=f"g{number}", mode=pb.SAGA, branches=[branch]))
            first.kill()
            await first.wait()
            async with participant(f"sqlite:///{tmp_path / 'bank.db'}", {"reader": 1000}, port) as accounts:

                async def have_all_ended() -> bool:
                    found = (await other.stub.List(pb.ListRequest())).transactions
                    return [each.state for each in found] == [pb.SUCCEEDED] * 20

                await eventually_async(have_all_ended)
                assert bank.holdings(accounts.database) == {"reader": (1000 - 20 * 30, 0)}
                assert {each.token for each in (await other.stub.List(pb.ListRequest())).transactions} == {2}
        finally:
            await coordinator.close()
            await other.close()
            for process in (first, second):
                if process.returncode is None:
                    process.terminate()
            assert await second.wait() == 0


@pytest.mark.parametrize(
    ("log", "text", "code"),
    [("etcd://127.0.0.1:1", "coordinator: --log:", 3), ("nonsense://x", "coordinator: --log:", 2)],
)
async def test_a_log_that_cannot_be_used_is_named(tmp_path: Path, log: str, text: str, code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remora", "tx", "coordinator", "--listen", "127.0.0.1:0", "--log", log),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == code
    assert text in err.decode()
    assert "Traceback" not in err.decode()
