"""The warning example: a transparent gRPC proxy as one writes it first, a generic handler on `grpc.aio`.

`python -m benchmarks.grpc_aio_proxy PORT BACKEND_PORT`. It is correct for all four kinds of call, it decodes no message, and it costs
several times what a proxy on frames costs: every call goes twice through a whole gRPC stack and through tasks of the event loop.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio


class Forwarder(grpc.GenericRpcHandler):
    """Takes every method, and makes the same call at the backend."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        call: Any = self._channel.stream_stream(handler_call_details.method)

        async def forward(
            requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[Any, Any]"
        ) -> AsyncIterator[bytes]:
            metadata = [(key, value) for key, value in context.invocation_metadata() or () if key != "user-agent"]
            upstream = call(requests, metadata=metadata, timeout=context.time_remaining())
            await context.send_initial_metadata(await upstream.initial_metadata())
            try:
                async for message in upstream:
                    yield message
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                await context.abort(error.code(), error.details() or "")
            context.set_trailing_metadata(await upstream.trailing_metadata())

        return grpc.stream_stream_rpc_method_handler(forward)


async def _serve(port: int, backend: int) -> None:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{backend}", options=options) as channel:
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((Forwarder(channel),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
