"""gRPC's interop client and server on grpcio, in this process. What a case does is written in gRPC's interop test descriptions.

grpcio's own are in no package.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from tests.interop.schema import SERVICE, Messages

MIB: Final = 1024 * 1024
OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * MIB),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.so_reuseport", 0),
)
INITIAL: Final = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
TRAILING: Final = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")
REQUESTS: Final = (27182, 8, 1828, 45904)
RESPONSES: Final = (31415, 9, 2653, 58979)
SPECIAL: Final = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
PATIENCE_S: Final = 20.0
STOP_S: Final = 5.0

Context = grpc.ServicerContext


# -- server -----------------------------------------------------------------------------------------


def _echo_metadata(context: Context) -> None:
    for key, value in context.invocation_metadata():
        if key == INITIAL[0]:
            context.send_initial_metadata(((key, value),))
        elif key == TRAILING[0]:
            context.set_trailing_metadata(((key, value),))


class TestService:
    """The service. Its methods take bytes apart by themselves, so that no generated code is needed."""

    def __init__(self, schema: Path) -> None:
        self._messages = Messages(schema)

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods."""
        messages = self._messages
        one, many, messages_to = messages.SimpleRequest, messages.StreamingOutputCallRequest, _encode
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "EmptyCall": grpc.unary_unary_rpc_method_handler(self._empty, messages.Empty.FromString, messages_to),
                "UnaryCall": grpc.unary_unary_rpc_method_handler(self._unary, one.FromString, messages_to),
                "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(self._answer, many.FromString, messages_to),
                "StreamingInputCall": grpc.stream_unary_rpc_method_handler(
                    self._sum, messages.StreamingInputCallRequest.FromString, messages_to
                ),
                "FullDuplexCall": grpc.stream_stream_rpc_method_handler(self._duplex, many.FromString, messages_to),
            },
        )

    def _empty(self, request: Any, context: Context) -> Any:
        return self._messages.Empty()

    def _unary(self, request: Any, context: Context) -> Any:
        _echo_metadata(context)
        self._abort_if_asked(request, context)
        if request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        return self._messages.SimpleResponse(payload=self._messages.payload(request.response_size))

    def _answer(self, request: Any, context: Context) -> Iterator[Any]:
        if any(wanted.compressed.value for wanted in request.response_parameters):
            context.set_compression(grpc.Compression.Gzip)
        for wanted in request.response_parameters:
            time.sleep(wanted.interval_us / 1e6)
            yield self._messages.StreamingOutputCallResponse(payload=self._messages.payload(wanted.size))

    def _sum(self, requests: Iterator[Any], context: Context) -> Any:
        total = sum(len(request.payload.body) for request in requests)
        return self._messages.StreamingInputCallResponse(aggregated_payload_size=total)

    def _duplex(self, requests: Iterator[Any], context: Context) -> Iterator[Any]:
        _echo_metadata(context)
        for request in requests:
            self._abort_if_asked(request, context)
            yield from self._answer(request, context)

    def _abort_if_asked(self, request: Any, context: Context) -> None:
        status = request.response_status
        if status.code:
            code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
            context.abort(code, status.message)


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


@contextmanager
def serving(schema: Path, certificate: tuple[Path, Path] | None) -> Iterator[int]:
    """Its port, as long as the context lasts."""
    server = grpc.server(ThreadPoolExecutor(16), handlers=[TestService(schema).handler()], options=list(OPTIONS))
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        chain, key = (path.read_bytes() for path in certificate)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait(STOP_S)


# -- client -----------------------------------------------------------------------------------------


class _Requests:
    """The requests of a stream, one at a time, until it is closed."""

    def __init__(self) -> None:
        self._ready = threading.Semaphore(0)
        self._waiting: list[Any] = []

    def send(self, request: Any) -> None:
        self._waiting.append(request)
        self._ready.release()

    def close(self) -> None:
        self._ready.release()

    def __iter__(self) -> Iterator[Any]:
        while self._ready.acquire(timeout=PATIENCE_S) and self._waiting:
            yield self._waiting.pop(0)


class Client:
    """The cases, each a method of its name. An AssertionError or a grpc.RpcError is a failure."""

    def __init__(self, schema: Path, channel: grpc.Channel) -> None:
        self._messages = messages = Messages(schema)
        self._channel = channel
        path, encode = f"/{SERVICE}/", _encode
        self._empty = channel.unary_unary(path + "EmptyCall", encode, messages.Empty.FromString)
        self._unary = channel.unary_unary(path + "UnaryCall", encode, messages.SimpleResponse.FromString)
        self._output = channel.unary_stream(
            path + "StreamingOutputCall", encode, messages.StreamingOutputCallResponse.FromString
        )
        self._input = channel.stream_unary(
            path + "StreamingInputCall", encode, messages.StreamingInputCallResponse.FromString
        )
        self._duplex = channel.stream_stream(
            path + "FullDuplexCall", encode, messages.StreamingOutputCallResponse.FromString
        )

    def _ask(self, size: int, back: int, **fields: Any) -> Any:
        """One request of FullDuplexCall."""
        wanted = [{"size": back, **fields}]
        return self._messages.StreamingOutputCallRequest(
            response_parameters=wanted, payload=self._messages.payload(size)
        )

    def _large(self, compression: grpc.Compression | None = None) -> None:
        request = self._messages.SimpleRequest(
            response_size=314159,
            payload=self._messages.payload(271828),
            response_compressed={"value": True} if compression else None,
        )
        answer = self._unary(request, timeout=PATIENCE_S, compression=compression)
        assert answer.payload.body == bytes(314159)

    def _client_streaming(self, compression: grpc.Compression | None = None) -> None:
        requests = [self._messages.StreamingInputCallRequest(payload=self._messages.payload(size)) for size in REQUESTS]
        answer = self._input(iter(requests), timeout=PATIENCE_S, compression=compression)
        assert answer.aggregated_payload_size == 74922

    def _server_streaming(self, compression: grpc.Compression | None = None) -> None:
        wanted = [{"size": size, "compressed": {"value": True} if compression else None} for size in RESPONSES]
        request = self._messages.StreamingOutputCallRequest(response_parameters=wanted)
        answers = self._output(request, timeout=PATIENCE_S, compression=compression)
        assert [len(answer.payload.body) for answer in answers] == list(RESPONSES)

    def empty_unary(self) -> None:
        assert self._empty(self._messages.Empty(), timeout=PATIENCE_S) == self._messages.Empty()

    def large_unary(self) -> None:
        self._large()

    def client_streaming(self) -> None:
        self._client_streaming()

    def server_streaming(self) -> None:
        self._server_streaming()

    def ping_pong(self) -> None:
        requests = _Requests()
        answers = self._duplex(iter(requests), timeout=PATIENCE_S)
        for size, back in zip(REQUESTS, RESPONSES, strict=True):
            requests.send(self._ask(size, back))
            assert len(next(answers).payload.body) == back
        requests.close()
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK

    def empty_stream(self) -> None:
        answers = self._duplex(iter(()), timeout=PATIENCE_S)
        assert list(answers) == []
        assert answers.code() is grpc.StatusCode.OK

    def timeout_on_sleeping_server(self) -> None:
        answers = self._duplex(iter([self._ask(27182, 1, interval_us=2_000_000)]), timeout=0.001)
        assert _failure(lambda: list(answers))[0] is grpc.StatusCode.DEADLINE_EXCEEDED

    def cancel_after_begin(self) -> None:
        requests = _Requests()
        call = self._input.future(iter(requests), timeout=PATIENCE_S)
        call.cancel()
        requests.close()
        assert call.cancelled()
        assert call.code() is grpc.StatusCode.CANCELLED

    def cancel_after_first_response(self) -> None:
        requests = _Requests()
        answers = self._duplex(iter(requests), timeout=PATIENCE_S)
        requests.send(self._ask(27182, 31415))
        assert len(next(answers).payload.body) == 31415
        answers.cancel()
        requests.close()
        assert _failure(lambda: list(answers))[0] is grpc.StatusCode.CANCELLED

    def status_code_and_message(self) -> None:
        said = (grpc.StatusCode.UNKNOWN, "test status message")
        status = {"code": 2, "message": said[1]}
        request = self._messages.SimpleRequest(response_status=status)
        assert _failure(lambda: self._unary(request, timeout=PATIENCE_S)) == said
        asked = self._messages.StreamingOutputCallRequest(response_status=status)
        assert _failure(lambda: list(self._duplex(iter([asked]), timeout=PATIENCE_S))) == said

    def special_status_message(self) -> None:
        request = self._messages.SimpleRequest(response_status={"code": 2, "message": SPECIAL})
        assert _failure(lambda: self._unary(request, timeout=PATIENCE_S)) == (grpc.StatusCode.UNKNOWN, SPECIAL)

    def custom_metadata(self) -> None:
        metadata = (INITIAL, TRAILING)
        request = self._messages.SimpleRequest(response_size=1, payload=self._messages.payload(1))
        _, call = self._unary.with_call(request, timeout=PATIENCE_S, metadata=metadata)
        answers = self._duplex(iter([self._ask(1, 1)]), timeout=PATIENCE_S, metadata=metadata)
        assert [len(answer.payload.body) for answer in answers] == [1]
        for each in (call, answers):
            assert INITIAL in [tuple(item) for item in each.initial_metadata()]
            assert TRAILING in [tuple(item) for item in each.trailing_metadata()]

    def unimplemented_method(self) -> None:
        self._unimplemented(SERVICE)

    def unimplemented_service(self) -> None:
        self._unimplemented("grpc.testing.UnimplementedService")

    def _unimplemented(self, service: str) -> None:
        method: Any = self._channel.unary_unary(f"/{service}/UnimplementedCall")
        assert _failure(lambda: method(b"", timeout=PATIENCE_S))[0] is grpc.StatusCode.UNIMPLEMENTED

    def compressed_unary(self) -> None:
        self._large(grpc.Compression.Gzip)

    def compressed_streaming(self) -> None:
        self._client_streaming(grpc.Compression.Gzip)
        self._server_streaming(grpc.Compression.Gzip)


def _failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """What a call that must fail ends with."""
    try:
        call()
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), failed.details()
    raise AssertionError("the call did not fail")


def run(schema: Path, target: str, authority: bytes | None, name: str, case: str) -> str:
    """Run a case; what failed, or an empty string."""
    if authority is None:
        channel = grpc.insecure_channel(target, options=list(OPTIONS))
    else:
        override = ("grpc.ssl_target_name_override", name)
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(authority), [*OPTIONS, override])
    with channel:
        try:
            getattr(Client(schema, channel), case)()
        except (AssertionError, grpc.RpcError) as error:
            return f"{type(error).__name__}: {error}"
    return ""
