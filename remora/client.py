"""The control plane as the commands see it: its API over gRPC, its errors as sentences with exit codes."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, Final, TypeVar

import grpc

from proto.mesh.v1 import api_pb2_grpc, identity_pb2_grpc
from remora import exits, local_secret
from remora.addresses import host_port, servers
from remora.commands.failure import Failure

T = TypeVar("T")
CALL_TIMEOUT_S: Final = 10.0
CONNECT_S: Final = 2.0
"""How long to try a replica if there is another."""
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_EXITS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: exits.BAD_INPUT,
    grpc.StatusCode.UNAVAILABLE: exits.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: exits.TIME_OVER,
}
# How gRPC's core words what it found out by itself; everything else is the control plane's own words.
_NOBODY_THERE: Final = ("failed to connect", "errors resolving", "DNS resolution failed")
_BROKEN_OFF: Final = ("Socket closed", "recvmsg:", "sendmsg:", "Stream removed", "GOAWAY received", "connection reset")
_OPERATOR: Final = "remora-operator"
_NO_ANSWER: Final = "Deadline Exceeded"


def _channel(address: str) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    return grpc.insecure_channel(address, options=options)


def _is_reached(channel: grpc.Channel) -> bool:
    """True once connected; False if that fails, or takes too long."""
    states: SimpleQueue[grpc.ChannelConnectivity] = SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    end = monotonic() + CONNECT_S
    try:
        while True:
            state = states.get(timeout=max(0.0, end - monotonic()))
            if state is grpc.ChannelConnectivity.READY:
                return True
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return False
    except Empty:
        return False
    finally:
        channel.unsubscribe(states.put)


class ControlPlane:
    """A connection to a control plane; used as a context manager."""

    def __init__(self, server: str) -> None:
        """HOST:PORT[,HOST:PORT…]: the first that can be reached is asked. Raises UsageError."""
        self._server = server
        addresses = [f"{host}:{port}" for host, port in servers(server, "--server")]
        self._address = addresses[0]
        self._channel = _channel(self._address)
        for address in addresses[1:]:
            if _is_reached(self._channel):
                break
            self._channel.close()
            self._address = address
            self._channel = _channel(address)
        self.resources = api_pb2_grpc.ResourcesStub(self._channel)
        self.registry = api_pb2_grpc.RegistryStub(self._channel)
        self.mesh = api_pb2_grpc.MeshStub(self._channel)
        self.identity = identity_pb2_grpc.IdentityStub(self._channel)

    def __enter__(self) -> "ControlPlane":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(
        self, method: Callable[..., T], request: Any, timeout_s: float = CALL_TIMEOUT_S, *, as_operator: bool = False
    ) -> T:
        """Call and wait; `as_operator` shows that it is us who run the control plane. Raises Failure."""
        secret = local_secret.find(*host_port(self._address, "--server")) if as_operator else ""
        try:
            return method(request, timeout=timeout_s, metadata=((_OPERATOR, secret),) if secret else None)
        except grpc.RpcError as error:
            raise self._failure(error, timeout_s) from None

    def _failure(self, error: Any, timeout_s: float) -> Failure:
        code, details = error.code(), error.details() or ""
        exit_code = _EXITS.get(code, exits.NO)
        if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOBODY_THERE):
            text = f"no control plane at {self._server}; start one with `remora up`, or say where it is with --server or REMORA_SERVER"
            return Failure(text, exit_code)
        if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_BROKEN_OFF):
            text = f"the control plane at {self._server} went away before it answered; it may have done what was asked"
            return Failure(text, exit_code)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == _NO_ANSWER:
            return Failure(
                f"the control plane at {self._server} did not answer within {timeout_s:g} s", exits.UNREACHABLE
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return Failure(
                f"{self._server} is no Remora control plane, or one of another release: {details}", exit_code
            )
        if not details:
            return Failure(f"the control plane at {self._server} answered {code.name}", exit_code)
        return Failure(details, exit_code)
