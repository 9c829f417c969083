"""The messages of gRPC's interop test service, from the descriptors that grpc-go's module has."""

from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "grpc.testing.TestService"


@cache
def _classes(schema: Path) -> dict[str, type[Any]]:
    files = descriptor_pb2.FileDescriptorSet.FromString(schema.read_bytes()).file
    return message_factory.GetMessages(list(files), pool=descriptor_pool.DescriptorPool())


class Messages:
    """Message classes by their short names."""

    def __init__(self, schema: Path) -> None:
        self._classes = _classes(schema)

    def __getattr__(self, name: str) -> Any:
        return self._classes[f"grpc.testing.{name}"]

    def payload(self, size: int) -> Any:
        """So many zeros."""
        return self.Payload(body=bytes(size))
