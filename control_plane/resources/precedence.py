"""Which policy counts when several are attached to one service."""

from collections.abc import Iterable

from proto.mesh.v1 import api_pb2


def order(resources: Iterable[api_pb2.Resource]) -> list[api_pb2.Resource]:
    """The first wins: the oldest, then the first of `NAMESPACE/NAME` in the alphabet (the Gateway API's rule for conflicts)."""
    return sorted(
        resources,
        key=lambda resource: (
            resource.metadata.creation_timestamp.ToNanoseconds(),
            f"{resource.metadata.namespace}/{resource.metadata.name}",
        ),
    )
