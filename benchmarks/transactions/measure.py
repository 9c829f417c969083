"""Drives a coordinator and counts: transactions a second, their latency, CPU and durable writes each, and recovery."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Final

import grpc
import psycopg

from apps.transactions.client import Transactions
from benchmarks.processes import Processes, free_port
from benchmarks.transactions.coordinators import Coordinator, Ours, Place
from proto.transactions.v1 import coordinator_pb2 as pb

IN_FLIGHT: Final = 64
WARM_UP: Final = 100
COUNTED: Final = 50
"""Transactions one after the other, for which durable writes are counted."""
STATISTICS_S: Final = 1.6
"""PostgreSQL's backends report what they did that much later."""
RECOVERED: Final = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one coordinator in one mode."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Of the coordinator, for each transaction."""
    syncs: float
    """Waits of the log for the disk, for each transaction, when there is one at a time."""


def cores() -> tuple[frozenset[int], frozenset[int]]:
    """For the coordinator, and for all else."""
    all_of_them = sorted(os.sched_getaffinity(0))
    return frozenset(all_of_them[:1]), frozenset(all_of_them[1:] or all_of_them)


async def sample(processes: Processes, coordinator: Coordinator, mode: str, place: Place, seconds: float) -> Sample:
    mine, _ = cores()
    process = coordinator.start(processes, mine, place)
    process.await_port(place.grpc_port)
    work = coordinator.saga if mode == "saga" else coordinator.tcc
    run = f"{mode}-{time.time_ns():x}"
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{place.grpc_port}") as channel,
            grpc.aio.insecure_channel(f"127.0.0.1:{place.participant}") as participant,
        ):
            await asyncio.gather(*(work(channel, participant, place, f"{run}-w{number}") for number in range(WARM_UP)))
            took: list[float] = []
            end = time.perf_counter() + seconds
            cpu, start = process.cpu_s(), time.perf_counter()

            async def again_and_again(worker: int) -> None:
                number = 0
                while time.perf_counter() < end:
                    began = time.perf_counter()
                    await work(channel, participant, place, f"{run}-{worker}-{number}")
                    took.append(time.perf_counter() - began)
                    number += 1

            await asyncio.gather(*(again_and_again(worker) for worker in range(IN_FLIGHT)))
            span, cpu = time.perf_counter() - start, process.cpu_s() - cpu
            await asyncio.sleep(STATISTICS_S)
            before = _syncs(place)
            for number in range(COUNTED):
                await work(channel, participant, place, f"{run}-c{number}")
            await asyncio.sleep(STATISTICS_S)
            syncs = _syncs(place) - before
    finally:
        processes.stop([process])
    cuts = quantiles(took, n=100)
    return Sample(len(took) / span, cuts[49] * 1000, cuts[98] * 1000, cpu / len(took) * 1000, syncs / COUNTED)


def _syncs(place: Place) -> int:
    """Waits for the disk on behalf of the write-ahead log, so far."""
    with psycopg.connect(f"host=127.0.0.1 port={place.database_port} user=postgres dbname=postgres") as connection:
        row = connection.execute("SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal'").fetchone()
    return int(row[0]) if row is not None else 0


async def recovery(processes: Processes, place: Place) -> float:
    """Seconds from the start of a coordinator that was killed with so many open sagas to the last one's end."""
    mine, others = cores()
    port = free_port()  # nobody is there
    process = Ours().start(processes, mine, place)
    process.await_port(place.grpc_port)
    client = Transactions(f"127.0.0.1:{place.grpc_port}")
    to = f"grpc://127.0.0.1:{port}/bench.Participant"
    run = f"r{time.time_ns():x}"
    branches = [
        pb.Branch(name=name, forward=pb.Call(target=f"{to}/Act"), undo=pb.Call(target=f"{to}/Undo")) for name in "abc"
    ]

    async def submit(number: int) -> None:
        await client.stub.Submit(pb.SubmitRequest(gid=f"{run}-{number}", mode=pb.SAGA, branches=branches), timeout=120)

    await asyncio.gather(*(submit(number) for number in range(RECOVERED)))
    os.kill(process.pid, signal.SIGKILL)
    processes.stop([process])
    participant = processes.start([sys.executable, "-m", "benchmarks.transactions.participant", str(port)], others)
    participant.await_port(port)
    process = Ours().start(processes, mine, place)
    start = process.started
    process.await_port(place.grpc_port)
    while (await client.stub.List(pb.ListRequest(states=[pb.RUNNING], limit=1), timeout=30)).transactions:
        await asyncio.sleep(0.05)
    took = time.perf_counter() - start
    await client.close()
    processes.stop([process, participant])
    return took


def plain(samples: Sequence[Sample]) -> list[dict[str, float]]:
    return [asdict(each) for each in samples]
