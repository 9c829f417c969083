"""Mixed load for a time: memory stays flat, and no task, stream or socket is left over."""

import asyncio
import os
import random
import tempfile
import time
from pathlib import Path

import pytest

from tests.differential import script
from tests.differential.wire import Wire
from tests.faults.target import MIB, PATIENCE_S, Held, Target
from tests.waiting import eventually

WORKERS = 6


async def _client(target: Target, chance: random.Random, end: float, done: list[int]) -> None:
    """Connections of all kinds, one after the other, until the time is over."""
    while time.monotonic() < end:
        kind = chance.choice(["calls", "calls", "calls", "cancels", "leaves", "http1", "half"])
        if kind == "http1":
            await _http1(target)
        elif kind == "half":
            await _half(target)
        else:
            await _http2(target, chance, kind, done)


async def _http2(target: Target, chance: random.Random, kind: str, done: list[int]) -> None:
    wire = Wire(is_server=False)
    await asyncio.get_running_loop().create_connection(lambda: wire, "127.0.0.1", target.ports["tunnel"])
    wire.hello()
    for _ in range(chance.randrange(1, 60)):
        size = chance.choice([10, 100, 1_000, 20_000, 200_000])
        fields = [f"x-user: {chance.random()}"] if chance.random() < 0.3 else []
        fields += ["grpc-timeout: 30S"] if chance.random() < 0.3 else []
        seen = wire.open(script.fields([*script.GRPC, *fields]), ended=False)
        ends = kind != "cancels" or chance.random() < 0.7
        wire.data(seen, script.message("x" * min(size, 16_000)), ended=ends)
        if not ends:
            wire.reset(seen, "CANCEL")
        else:
            await wire.until(lambda seen=seen: seen.is_over, PATIENCE_S)  # type: ignore[misc]
            assert seen.header("grpc-status") == "0", str(seen)[:400]
            done[0] += 1
        wire.streams.clear()
    if kind == "leaves":
        wire.data(wire.open(script.fields(script.GRPC), ended=False), script.message("bye"), ended=False)
    wire.close()


async def _http1(target: Target) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.ports["main"])
    for _ in range(3):
        writer.write(b"GET /nowhere HTTP/1.1\r\nhost: shop\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 503")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(length)
    writer.close()


async def _half(target: Target) -> None:
    """A connection that ends in the middle of its first frame."""
    _, writer = await asyncio.open_connection("127.0.0.1", target.ports["tunnel"])
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0")
    await writer.drain()
    writer.close()


async def _load(target: Target, seconds: float) -> int:
    done = [0]
    end = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(WORKERS):
            group.create_task(_client(target, random.Random(number), end, done))
    return done[0]


def _quiet(target: Target) -> Held:
    """What is held once nobody calls."""
    eventually(lambda: target.held().connections == 0 and target.held().calls == 0, timeout_s=PATIENCE_S)
    return target.held()


def _soak(seconds: float, warm_up: float, allowed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        target = Target(Path(folder))
        target.backend.forgets = True
        target.open()
        try:
            asyncio.run(_load(target, warm_up))
            before = _quiet(target)
            calls = asyncio.run(_load(target, seconds))
            after = _quiet(target)
            assert calls > 10 * seconds
            assert after.files <= before.files + 1
            assert after.rss - before.rss < allowed, (
                f"{(after.rss - before.rss) / MIB:.1f} MiB more after {calls} calls"
            )
            assert target.engine.is_running
            assert "Traceback" not in target.engine.log.read_text()
        finally:
            target.close()


def test_a_short_soak_leaves_nothing_behind() -> None:
    _soak(seconds=12.0, warm_up=6.0, allowed=16 * MIB)


@pytest.mark.slow
def test_a_long_soak_leaves_nothing_behind() -> None:
    _soak(seconds=float(os.environ.get("REMORA_SOAK_S", "600")), warm_up=30.0, allowed=16 * MIB)
