"""`python -m benchmarks.transactions.participant PORT`: answers every call at once, so that only coordinators are measured."""

import asyncio
import sys
from typing import Any, cast

import grpc


class Everything(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return _ANSWER


async def _answer(request: bytes, context: object) -> bytes:
    return b""


_ANSWER: "grpc.RpcMethodHandler[bytes, bytes]" = grpc.unary_unary_rpc_method_handler(cast(Any, _answer))


async def main(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Everything(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
