"""The coordinators that are measured: how each is started, and how it is asked for one purchase, as bytes."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from apps.transactions.context import BranchCall, Op
from benchmarks.processes import Process, Processes, find
from proto.transactions.v1 import coordinator_pb2 as pb

STEPS: Final = ("debit", "take", "credit")
BODY: Final = b"p" * 64
"""Of each call; the purchase's own requests are as large."""
TIMEOUT_S: Final = 20.0
Raw = Callable[..., Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything is."""

    participant: int
    """Port."""
    database_port: int
    grpc_port: int
    http_port: int
    json_port: int


class Coordinator(Protocol):
    name: str
    database: str

    def start(self, processes: Processes, cpus: frozenset[int], place: Place) -> Process: ...
    async def saga(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        """Three steps, one after the other, to the end. Raises grpc.aio.AioRpcError."""
        ...

    async def tcc(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        """Three branches: registered (ours with the beginning, DTM's one by one, as it must be), tried, confirmed."""
        ...


def _raw(channel: grpc.aio.Channel, method: str) -> Raw:
    call: Any = channel.unary_unary(method)
    return lambda body, **options: call(body, timeout=TIMEOUT_S, **options)


class Ours:
    name = "remora"
    database = "remora"

    def start(self, processes: Processes, cpus: frozenset[int], place: Place) -> Process:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{place.database_port}/{self.database}"
        words = [sys.executable, "-m", "apps.transactions.coordinator", "--log", url]
        words += ["--listen", f"127.0.0.1:{place.grpc_port}", "--name", "bench"]
        return processes.start(words, cpus)

    async def saga(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        to = f"grpc://127.0.0.1:{place.participant}/bench.Participant"
        branches = []
        for number, name in enumerate(STEPS):
            act, undo = pb.Call(target=f"{to}/Act", body=BODY), pb.Call(target=f"{to}/Undo", body=BODY)
            branches.append(pb.Branch(name=name, after=STEPS[max(0, number - 1) : number], forward=act, undo=undo))
        asked = pb.SubmitRequest(gid=gid, mode=pb.SAGA, branches=branches, wait_s=TIMEOUT_S)
        answer = await _raw(channel, "/transactions.v1.Coordinator/Submit")(asked.SerializeToString())
        assert pb.Transaction.FromString(answer).state == pb.SUCCEEDED

    async def tcc(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        to = f"127.0.0.1:{place.participant}/bench.Participant"
        call = {name: _raw(channel, f"/transactions.v1.Coordinator/{name}") for name in ("Begin", "Submit")}
        confirm, cancel = (pb.Call(target=f"grpc://{to}/{name}", body=BODY) for name in ("Confirm", "Cancel"))
        branches = [pb.Branch(name=name, finish=confirm, undo=cancel) for name in STEPS]
        await call["Begin"](pb.BeginRequest(gid=gid, mode=pb.TCC, branches=branches).SerializeToString())
        for name in STEPS:
            metadata = BranchCall(gid, name, Op.TRY).metadata()
            await _raw(participant, "/bench.Participant/Try")(BODY, metadata=metadata)
        answer = await call["Submit"](pb.SubmitRequest(gid=gid, wait_s=TIMEOUT_S).SerializeToString())
        assert pb.Transaction.FromString(answer).state == pb.SUCCEEDED


class Dtm:
    """github.com/dtm-labs/dtm; `dtm/go.mod` says which."""

    name = "dtm"
    database = "dtm"

    def start(self, processes: Processes, cpus: frozenset[int], place: Place) -> Process:
        binary = find("dtm")
        assert binary is not None
        variables = {
            "STORE_DRIVER": "postgres",
            "STORE_HOST": "127.0.0.1",
            "STORE_PORT": str(place.database_port),
            "STORE_USER": "postgres",
            "STORE_PASSWORD": "none",
            "STORE_DB": self.database,
            "HTTP_PORT": str(place.http_port),
            "GRPC_PORT": str(place.grpc_port),
            "JSON_RPC_PORT": str(place.json_port),
            "LOG_LEVEL": "error",
            "GOMAXPROCS": "1",
        }
        return processes.start([binary], cpus, variables)

    async def saga(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        to = f"127.0.0.1:{place.participant}/bench.Participant"
        steps = json.dumps([{"action": f"{to}/Act", "compensate": f"{to}/Undo"}] * len(STEPS))
        asked = _text(1, gid) + _text(2, "saga") + _bytes(3, b"\x08\x01")  # TransOptions: WaitResult
        asked += b"".join(_bytes(5, BODY) for _ in STEPS) + _text(7, steps)
        await _raw(channel, "/dtmgimp.Dtm/Submit")(asked)

    async def tcc(self, channel: grpc.aio.Channel, participant: grpc.aio.Channel, place: Place, gid: str) -> None:
        to = f"127.0.0.1:{place.participant}/bench.Participant"
        begun = _text(1, gid) + _text(2, "tcc") + _bytes(3, b"\x08\x01")
        await _raw(channel, "/dtmgimp.Dtm/Prepare")(begun)
        for number, _ in enumerate(STEPS, 1):
            branch = _text(1, gid) + _text(2, "tcc") + _text(3, f"{number:02}")
            for op in ("confirm", "cancel"):
                branch += _bytes(5, _text(1, op) + _text(2, f"{to}/{op.title()}"))
            await _raw(channel, "/dtmgimp.Dtm/RegisterBranch")(branch + _bytes(6, BODY))
            await _raw(participant, "/bench.Participant/Try")(BODY)
        await _raw(channel, "/dtmgimp.Dtm/Submit")(begun)


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    """A field of a protobuf message, length-delimited: DTM's schema is not ours to ship."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def schema(name: str) -> str:
    """The SQL that a coordinator's database needs before it starts; empty if it sees to that itself."""
    if name != Dtm.name:
        return ""
    module = Path(__file__).parent / "dtm"
    found = subprocess.run(
        ["go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", "github.com/dtm-labs/dtm"],
        cwd=module,
        capture_output=True,
        text=True,
        check=True,
    )
    return (Path(found.stdout.strip()) / "sqls" / "dtmsvr.storage.postgres.sql").read_text()
