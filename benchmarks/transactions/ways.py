"""The bookstore's ways of a purchase, without a mesh: purchases a second, and how long one takes."""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final

import grpc

from apps.bookstore import catalogue, seed
from benchmarks.processes import Processes, free_port
from benchmarks.transactions.measure import cores
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc

WAYS: Final = ("saga", "tcc", "outbox", "xa", "naive")
SERVICES: Final = ("bank", "accounts", "warehouse", "payment", "notification", "orders")
IN_FLIGHT: Final = 16
READERS: Final = 5000
WARM_UP: Final = 20
BOOKS: Final = [each.id for each in catalogue.BOOKS]


@dataclass(frozen=True, slots=True)
class Way:
    per_s: float
    p50_ms: float
    p99_ms: float


async def way(processes: Processes, name: str, directory: Path, url: str, seconds: float) -> Way:
    """`url`: of PostgreSQL databases for xa, else empty."""
    seed.seed(directory, 100_000, url, READERS)
    ports = {service: free_port() for service in (*SERVICES, "transactions")}
    variables = {f"{service.upper()}_TARGET": f"127.0.0.1:{port}" for service, port in ports.items()}
    variables |= {"BOOKSTORE_DIR": str(directory), "BOOKSTORE_DATABASE": url, "PURCHASES": name}
    log = f"sqlite:///{directory}/transactions.sqlite3"
    words = ["-m", "apps.transactions.coordinator", "--log", log, "--listen", f"127.0.0.1:{ports['transactions']}"]
    mine, others = cores()
    running = [processes.start([sys.executable, *words], mine)]
    for service in SERVICES:
        of_one = {**variables, "PORT": str(ports[service])}
        running.append(processes.start([sys.executable, "-m", f"apps.bookstore.{service}"], others, of_one))
    for process, port in zip(running, (ports["transactions"], *(ports[each] for each in SERVICES)), strict=True):
        process.await_port(port)
    took: list[float] = []
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['orders']}") as channel:
            stub: orders_pb2_grpc.OrdersAsyncStub = orders_pb2_grpc.OrdersStub(channel)
            end = time.perf_counter() + seconds

            async def buy(order_id: str, reader: int) -> None:
                request = orders_pb2.PurchaseRequest(
                    order_id=order_id, reader=f"reader-{reader % READERS}", book=BOOKS[reader % len(BOOKS)], copies=1
                )
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Purchase(request, timeout=10)

            async def again_and_again(worker: int) -> None:
                number = 0
                while time.perf_counter() < end:
                    began = time.perf_counter()
                    await buy(f"w{worker}-{number}", worker + number * IN_FLIGHT)
                    took.append(time.perf_counter() - began)
                    number += 1

            for number in range(WARM_UP):
                await buy(f"warm-{number}", number)
            start = time.perf_counter()
            await asyncio.gather(*(again_and_again(worker) for worker in range(IN_FLIGHT)))
            span = time.perf_counter() - start
    finally:
        processes.stop(running)
    cuts = quantiles(took, n=100)
    return Way(len(took) / span, cuts[49] * 1000, cuts[98] * 1000)
