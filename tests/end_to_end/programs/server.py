"""A gRPC server that knows nothing of a mesh: grpcio, health and reflection, as its authors recommend.

| variable | meaning |
|---|---|
| PORT | where it listens, of 127.0.0.1 |
| INSTANCE | what it calls itself |
| HEALTH | `serving`, `not-serving`, or `none`: without a health service |
| START_S | seconds before it listens |
| EXIT_CODE | what it ends with after SIGTERM |
| STOP_S | how long calls may go on after SIGTERM |
| SAY | a line for standard output |
| XDS | if set: it takes its listener from a control plane (`GRPC_XDS_BOOTSTRAP`) |
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from schema import SERVICE, messages, services  # type: ignore[import-not-found]

INSTANCE = os.environ.get("INSTANCE", "")


def _reflect(context: grpc.ServicerContext) -> None:
    metadata = [(key, value) for key, value in context.invocation_metadata()]
    context.send_initial_metadata(tuple(item for item in metadata if item[0].startswith("first-")))
    context.set_trailing_metadata(tuple(item for item in metadata if item[0].startswith("last-")))


class Echo(services.EchoServicer):  # type: ignore[misc]
    def __init__(self, healths: health.HealthServicer) -> None:
        self._healths = healths

    def _note(self, note: Any) -> Any:
        return messages.Note(text=note.text, payload=note.payload, count=note.count, instance=INSTANCE)

    def Unary(self, request: Any, context: grpc.ServicerContext) -> Any:
        _reflect(context)
        return self._note(request)

    def ServerStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        _reflect(context)
        for number in range(request.count):
            yield messages.Note(text=request.text, payload=request.payload, count=number, instance=INSTANCE)

    def ClientStream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        _reflect(context)
        notes = list(requests)
        return messages.Note(text="".join(note.text for note in notes), count=len(notes), instance=INSTANCE)

    def BidiStream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        _reflect(context)
        for note in requests:
            yield self._note(note)

    def Fail(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=request.reason))
        status = status_pb2.Status(code=request.code, message=request.message, details=[detail])
        context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError

    def Slow(self, request: Any, context: grpc.ServicerContext) -> Any:
        gone = threading.Event()
        context.add_callback(gone.set)
        if gone.wait(request.milliseconds / 1000):
            print("the caller is gone", flush=True)
        return messages.Note(text="done", instance=INSTANCE)

    def Crash(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        os._exit(request.count or 1)

    def SetServing(self, request: Any, context: grpc.ServicerContext) -> Any:
        status = health_pb2.HealthCheckResponse.SERVING
        self._healths.set("", status if request.is_serving else health_pb2.HealthCheckResponse.NOT_SERVING)
        return messages.Note(instance=INSTANCE)


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda got, _: print(f"got {signal.Signals(got).name}", flush=True))
    if "SAY" in os.environ:
        print(os.environ["SAY"], flush=True)
    stop.wait(float(os.environ.get("START_S", "0")))
    is_xds = "XDS" in os.environ
    server = grpc.server(ThreadPoolExecutor(128), options=[("grpc.so_reuseport", 0)], xds=is_xds)
    healths = health.HealthServicer()
    services.add_EchoServicer_to_server(Echo(healths), server)
    names = [SERVICE, reflection.SERVICE_NAME]
    kind = os.environ.get("HEALTH", "serving")
    if kind != "none":
        health_pb2_grpc.add_HealthServicer_to_server(healths, server)
        names.append(health.SERVICE_NAME)
    if kind == "not-serving":
        healths.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    reflection.enable_server_reflection(names, server)
    where, plain = f"127.0.0.1:{os.environ['PORT']}", grpc.insecure_server_credentials()
    if is_xds:
        server.add_secure_port(where, grpc.xds_server_credentials(plain))
    else:
        server.add_insecure_port(where)
    server.start()
    print(f"listening on {os.environ['PORT']}", flush=True)
    stop.wait()
    server.stop(float(os.environ.get("STOP_S", "5"))).wait()
    return int(os.environ.get("EXIT_CODE", "0"))


sys.exit(main())
