"""Keep-alives: all of a process over one stream, in order.

A stream for each keep-alive would cost etcd and us several times as much, and a thousand sidecars ask three hundred times a second.
etcd answers in the order of the questions, so the waiting callers are a queue. The stream is given up when no answer at all has come
for a while (a long queue alone is no fault); the callers then ask again over a stream to another member. Asking twice does no harm.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import Any, Final

import grpc.aio

from control_plane.store.contract import LeaseNotFound, StoreUnavailable
from control_plane.store.etcd_members import Member, Members, Metadata, is_cancelled, pauses
from proto.etcd.v1 import rpc_pb2 as pb

MAX_WAITING: Final = 10_000
"""Keep-alives in the queue; more are refused at once."""


class _Lost(Exception):
    """The stream ended; `error` is gRPC's, None if the stream was just silent or ended without one."""

    def __init__(self, error: grpc.aio.AioRpcError | None) -> None:
        self.error = error


class _Stream:
    """One LeaseKeepAlive call and who waits for its answers."""

    def __init__(self, member: Member, metadata: Metadata, try_s: float) -> None:
        self.member = member
        self.metadata = metadata
        self.is_lost = False
        self._try_s = try_s
        self._questions: asyncio.Queue[pb.LeaseKeepAliveRequest] = asyncio.Queue()
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._asked = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def renew(self, lease: int, within_s: float) -> int:
        """The TTL that etcd answers. Raises _Lost, TimeoutError."""
        if len(self._waiting) >= MAX_WAITING:
            raise StoreUnavailable(f"{MAX_WAITING} keep-alives wait for etcd; try again")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((lease, answer))
        self._questions.put_nowait(pb.LeaseKeepAliveRequest(ID=lease))
        self._asked.set()
        async with asyncio.timeout(max(within_s, 0.0)):
            return await answer

    async def _run(self) -> None:
        call = self.member.lease.LeaseKeepAlive(self._outgoing(), metadata=self.metadata)
        error: grpc.aio.AioRpcError | None = None
        try:
            while True:
                while not self._waiting:
                    self._asked.clear()
                    await self._asked.wait()
                async with asyncio.timeout(self._try_s):
                    response: Any = await call.read()
                if response is grpc.aio.EOF:
                    return
                lease, answer = self._waiting[0]
                if lease != response.ID:
                    return  # out of step, everybody would be told somebody else's answer
                self._waiting.popleft()
                if not answer.done():
                    answer.set_result(response.TTL)
        except TimeoutError:
            return
        except grpc.aio.AioRpcError as failure:
            error = failure
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if is_cancelled():
                raise
        finally:
            self.is_lost = True
            call.cancel()
            for _, answer in self._waiting:
                if not answer.done():
                    answer.set_exception(_Lost(error))
            self._waiting.clear()

    async def _outgoing(self) -> Any:
        while True:
            yield await self._questions.get()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class KeepAlives:
    """The stream of the moment."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._stream: _Stream | None = None

    async def renew(self, lease: int) -> int:
        """The new TTL in seconds. Raises LeaseNotFound, StoreUnavailable."""
        until = monotonic() + self._members.patience.total_s
        for pause_s in pauses():
            stream = await self._open(until)
            try:
                ttl_s = await stream.renew(lease, until - monotonic())
            except _Lost as lost:
                self._members.check_open()
                if lost.error is None:
                    stream.member.blame()
                else:
                    await self._members.settle(stream.member, lost.error, stream.metadata)
            except TimeoutError:
                raise StoreUnavailable(
                    f"{self._members.target} does not answer (member {stream.member.endpoint})"
                ) from None
            else:
                if ttl_s <= 0:
                    raise LeaseNotFound("the lease has ended or never was")
                return ttl_s
            if monotonic() + pause_s > until:
                raise StoreUnavailable(f"{self._members.target} does not answer (member {stream.member.endpoint})")
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses end")

    async def _open(self, until: float) -> _Stream:
        while self._stream is None or self._stream.is_lost:
            member = await self._members.connected(until)
            metadata = await self._members.metadata()
            if self._stream is None or self._stream.is_lost:  # else another caller was faster
                self._stream = _Stream(member, metadata, self._members.patience.try_s)
        return self._stream

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.close()
