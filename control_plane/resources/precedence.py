"""Which resource counts when several decide the same."""

from collections.abc import Iterable

from control_plane.resources.kinds import DEFAULT_NAMESPACE
from proto.mesh.v1 import api_pb2

Age = tuple[int, str]
"""(creation in nanoseconds, `NAMESPACE/NAME`): the lowest counts."""


def age(resource: api_pb2.Resource) -> Age:
    """What precedence looks at (the Gateway API's rule for conflicts): the oldest, then the first in the alphabet."""
    metadata = resource.metadata
    return metadata.creation_timestamp.ToNanoseconds(), f"{metadata.namespace or DEFAULT_NAMESPACE}/{metadata.name}"


def order(resources: Iterable[api_pb2.Resource]) -> list[api_pb2.Resource]:
    """The one that counts first."""
    return sorted(resources, key=age)
