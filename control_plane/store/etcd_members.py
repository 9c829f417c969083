"""Calls to a cluster of etcd: which member, with which token, for how long, and what a failure means.

Each member has a channel of its own. Calls keep to one member as long as it answers and move to the one that was blamed longest ago
when it does not: so a member that hangs costs one call's time and not a third of all calls, a failure names the member, and each
certificate is checked for its own host. gRPC's round robin over one channel can do none of that.

A call is sent only over a connection that stands, so what fails before that has surely not been done. Whatever fails after that in a
way that etcd does not vouch for (time over, connection lost, member stopped) is *in doubt*: it may have been done, or may still be.
Calls that may be done twice are tried again; others raise StoreUnavailable.

Every call asks the member to answer only while it knows a leader (`hasleader`); otherwise one that is cut off would let it wait for
seven seconds.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from random import random, sample
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from control_plane.store.contract import LeaseNotFound, StoreError, StoreFull, StoreUnavailable
from control_plane.store.etcd_target import PASSWORD, USER, Target
from proto.etcd.v1 import rpc_pb2 as pb
from proto.etcd.v1 import rpc_pb2_grpc as rpc

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.8
"""Pauses between tries double from the first to the longest, times 0.5 to 1.5 by chance."""
PROBE_S: Final = 0.3
"""How long to wait for the reason why there is no connection…"""
REASON_LASTS_S: Final = 1.0
"""… and how long it is good for."""

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.keepalive_time_ms", 10_000),  # not below 5 s, or etcd hangs up
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),  # without it a stopped process is not noticed
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]

_NOBODY_KNOWS: Final = "the write may or may not have happened"
_NOBODY: Final[Metadata] = (("hasleader", "true"),)


class Failure(Protocol):
    """The part of `grpc.aio.AioRpcError` that is looked at."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for etcd, in seconds."""

    try_s: float = 2.0
    """One try of a call that may be done twice; an answer on the stream of keep-alives."""
    only_try_s: float = 4.0
    """The try of a call that may not: a slow disk is better waited for than left in doubt."""
    total_s: float = 5.0
    """A call, all its tries together, and a watch without a member. An election of etcd's takes one to three seconds."""
    silence_s: float = 2.0
    """A watch on which nothing comes asks for a sign of life after so long; again so long, and the member is left."""


PATIENCE: Final = Patience()


class HistoryGone(StoreError):
    """A revision was asked for that is compacted."""


class AuthIsOff(StoreError):
    """A login at a cluster that knows no users."""


class Kind(Enum):
    """What may be done about a call that is in doubt."""

    READ = auto()
    IDEMPOTENT = auto()
    """Doing it twice is the same as doing it once."""
    GUARDED = auto()
    """Once done, it is refused by its own comparison."""
    ONCE = auto()
    """Never to be tried again."""


class Verdict(Enum):
    """What a failure means for the call, if it is no error to report."""

    NOT_DONE = auto()
    """etcd vouches that nothing was done: try again."""
    NOT_LET_IN = auto()
    """Nothing was done: the token has ended, or is older than a change of etcd's users."""
    IN_DOUBT = auto()
    """It may have been done, or may still be."""


def judge(code: grpc.StatusCode, text: str) -> Verdict | type[StoreError]:
    """The meaning of a status of etcd's."""
    if code is grpc.StatusCode.UNAUTHENTICATED or is_about_token(text):
        return Verdict.NOT_LET_IN
    if text == "etcdserver: no leader" or "too many requests" in text:
        return Verdict.NOT_DONE
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return StoreFull if "space exceeded" in text else StoreError
    if code is grpc.StatusCode.NOT_FOUND and "lease not found" in text:
        return LeaseNotFound
    if code is grpc.StatusCode.OUT_OF_RANGE and "has been compacted" in text:
        return HistoryGone
    if code is grpc.StatusCode.FAILED_PRECONDITION and "authentication is not enabled" in text:
        return AuthIsOff
    return StoreError if code in _DEFINITE else Verdict.IN_DOUBT


_DEFINITE: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def is_about_token(text: str) -> bool:
    """Whether etcd asks for a (new) login; it says so with several codes, and in a watch with none."""
    return any(part in text for part in ("invalid auth token", "user name is empty", "revision of auth store is old"))


def is_cancelled() -> bool:
    """Whether the caller is being cancelled, and not just a call of gRPC's that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _plain(error: Failure) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    return (error.details() or error.code().name).removeprefix("etcdserver: ")


def pauses() -> Iterator[float]:
    """Seconds to wait between tries, without end."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * (0.5 + random())
        pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


class Member:
    """A member of the cluster and the connection to it."""

    def __init__(self, endpoint: str, target: Target) -> None:
        self.endpoint = endpoint
        self.blamed_at = 0.0
        """When a call to it failed last, on the monotonic clock."""
        address = f"dns:///{endpoint}"
        options: list[tuple[str, Any]] = list(_OPTIONS)
        if target.tls is None:
            self.channel = grpc.aio.insecure_channel(address, options)
        else:
            if target.tls.server_name:
                options.append(("grpc.ssl_target_name_override", target.tls.server_name))
            credentials = grpc.ssl_channel_credentials(target.tls.ca, target.tls.key, target.tls.cert)
            self.channel = grpc.aio.secure_channel(address, credentials, options)
        self.kv = rpc.KVStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.lease = rpc.LeaseStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)

    @property
    def is_connected(self) -> bool:
        """Also sees to it that it will be, if it is not."""
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def blame(self) -> None:
        """Others come first from now on."""
        self.blamed_at = monotonic()


@dataclass(frozen=True, slots=True)
class Answer(Generic[Response]):
    """What a call came to."""

    response: Response
    was_in_doubt: bool
    """An earlier try of the same call may have been carried out too."""


class Members:
    """The cluster. Belongs to one event loop."""

    def __init__(self, target: Target, patience: Patience) -> None:
        self.target = target
        self.patience = patience
        self.is_closed = False
        # In an order of our own, so that the replicas of a control plane do not all sit on the first member.
        self._members = [Member(endpoint, target) for endpoint in sample(target.endpoints, len(target.endpoints))]
        self._token: str | None = None
        """None before the first login, empty if the cluster knows no users."""
        self._login = asyncio.Lock()
        self._connecting: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._last_reason = ""
        self._reason_at = 0.0

    # -- who ----------------------------------------------------------------------------------------

    async def connected(self, until: float) -> Member:
        """The member to call now. Raises StoreUnavailable if none can be connected to until then."""
        while True:
            self.check_open()
            ready = [member for member in self._members if member.is_connected]
            if ready:
                return min(ready, key=lambda member: member.blamed_at)
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(self._any_connected())
            done, _ = await asyncio.wait({self._connecting}, timeout=max(until - monotonic(), 0.0))
            if not done:
                raise StoreUnavailable(f"{self.target} cannot be reached: {await self._reason()}")

    async def _any_connected(self) -> None:
        """One wait for all callers: a thousand keep-alives may be among them."""
        waiting = {asyncio.ensure_future(member.channel.channel_ready()) for member in self._members}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _reason(self) -> str:
        """Why there is no connection. Only a call is told, so one is made: now and then, not for every caller."""

        async def probe(member: Member) -> str:
            try:
                await member.kv.Range(pb.RangeRequest(key=b"\0", count_only=True), timeout=PROBE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    return (error.details() or error.code().name).rpartition(": ")[2].rstrip("])").lower()
            return "no answer"

        async with self._asking:
            self.check_open()
            if monotonic() > self._reason_at + REASON_LASTS_S:
                reasons = await asyncio.gather(*(probe(member) for member in self._members))
                self._last_reason = "; ".join(dict.fromkeys(reasons))
                self._reason_at = monotonic()
            return self._last_reason

    # -- calls --------------------------------------------------------------------------------------

    async def call(
        self,
        method: Callable[[Member], "grpc.aio.UnaryUnaryMultiCallable[Request, Response]"],
        request: Request,
        kind: Kind,
        *,
        with_token: bool = True,
    ) -> Answer[Response]:
        """Call one member after the other until one answers. Raises what `judge` says, or StoreUnavailable."""
        until = monotonic() + self.patience.total_s
        was_in_doubt = False
        for pause_s in pauses():
            member = await self.connected(until)
            metadata = await self.metadata() if with_token else _NOBODY
            try_s = self.patience.only_try_s if kind is Kind.ONCE else self.patience.try_s
            limit_s = min(try_s, max(until - monotonic(), FIRST_PAUSE_S))
            try:
                response = await self._unary(method(member), request, limit_s, metadata)
                return Answer(response, was_in_doubt)
            except grpc.aio.AioRpcError as error:
                try:
                    if await self.settle(member, error, metadata) is Verdict.IN_DOUBT:
                        was_in_doubt = True
                except StoreError as refusal:
                    if was_in_doubt and kind is Kind.GUARDED:  # this try is refused; an earlier one may have been done
                        raise StoreUnavailable(f"{refusal}; {_NOBODY_KNOWS}") from None
                    raise
                if (was_in_doubt and kind is Kind.ONCE) or monotonic() + pause_s > until:
                    outcome = f"; {_NOBODY_KNOWS}" if was_in_doubt and kind is not Kind.READ else ""
                    raise StoreUnavailable(self.away(member, error) + outcome) from None
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses end")

    async def settle(self, member: Member, error: Failure, metadata: Metadata) -> Verdict:
        """Draw the consequences of a failure; raises the error to report, if it is one."""
        verdict = judge(error.code(), error.details() or "")
        if isinstance(verdict, type):
            raise verdict(self._sentence(verdict, _plain(error))) from None
        if verdict is Verdict.NOT_LET_IN:
            if not self.target.user:
                raise StoreError(f"{self.target} asks for a user and a password; set {USER} and {PASSWORD}") from None
            await self._renew_token(metadata)
        else:
            member.blame()
        return verdict

    def _sentence(self, kind: type[StoreError], text: str) -> str:
        if kind is LeaseNotFound:
            return "the lease has ended or never was"
        if kind is StoreFull:
            return f"{self.target} is full ({text}): compact and defragment it, then disarm its alarm"
        return f"{self.target} refuses: {text}"

    def away(self, member: Member, error: Failure) -> str:
        """The sentence for StoreUnavailable."""
        return f"{self.target} does not answer (member {member.endpoint}: {_plain(error)})"

    async def _unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        limit_s: float,
        metadata: Metadata,
    ) -> Response:
        try:
            return await method(request, timeout=limit_s, metadata=metadata)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # A channel that is closed cancels its calls; that is not a cancellation of the caller.
            if not is_cancelled():
                self.check_open()
            raise

    # -- tokens -------------------------------------------------------------------------------------

    async def metadata(self) -> Metadata:
        """What goes with every call; logs in if that has not been done."""
        if self.target.user and self._token is None:
            await self._renew_token(None)
        return (*_NOBODY, ("token", self._token)) if self._token else _NOBODY

    async def _renew_token(self, stale: Metadata | None) -> None:
        """Log in, once for all callers that found the same token stale (None: found that there is none)."""
        async with self._login:
            if self._token is not None and (stale is None or (self._token and ("token", self._token) not in stale)):
                return
            request = pb.AuthenticateRequest(name=self.target.user, password=self.target.password)
            try:
                answer = await self.call(lambda member: member.auth.Authenticate, request, Kind.READ, with_token=False)
                self._token = answer.response.token
            except AuthIsOff:
                self._token = ""

    # -- the end ------------------------------------------------------------------------------------

    def check_open(self) -> None:
        if self.is_closed:
            raise StoreUnavailable(f"the store {self.target} is closed")

    async def close(self) -> None:
        self.is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await asyncio.gather(*(member.channel.close() for member in self._members))
