"""Where things stand in the store."""

from typing import Final

RESOURCES: Final = b"/remora/v1/resources/"
INSTANCES: Final = b"/remora/v1/instances/"
ROSTER: Final = b"/remora/v1/roster/"
"""Instances as they registered last; without a lease."""
DRAINED: Final = b"/remora/v1/drained/"
"""Instances that an operator drained; without a lease."""
HISTORY: Final = b"/remora/history/v1/"
ROOT: Final = b"/remora/v1/"
FORMAT: Final = b"/remora/format"
"""The version of all of this."""
REPLICAS: Final = b"/remora/replicas/v1/"
"""Who serves this store: an address each, under a lease."""
OWNER: Final = b"/remora/owner/v1/sweeper"
"""Held by the replica that sweeps. Like all that follows, not below `ROOT`: it is no news for who follows the mesh."""
MARKS: Final = b"/remora/sweeper/v1/marks"
"""Which revision was the present one at which time."""
TRUST: Final = ROOT + b"trust"
"""Whom the mesh trusts."""


def resource(kind: str, namespace: str, name: str) -> bytes:
    """The key of a resource."""
    return RESOURCES + f"{kind}/{namespace}/{name}".encode()


def instance(namespace: str, service: str, instance_id: str) -> bytes:
    """The key of an instance."""
    return INSTANCES + f"{namespace}/{service}/{instance_id}".encode()


def roster(namespace: str, service: str, instance_id: str) -> bytes:
    """The key of an instance's line on the roster."""
    return ROSTER + f"{namespace}/{service}/{instance_id}".encode()


def drained(namespace: str, service: str, instance_id: str) -> bytes:
    """The key of an operator's word that an instance is drained."""
    return DRAINED + f"{namespace}/{service}/{instance_id}".encode()


def history(kind: str, namespace: str, name: str) -> bytes:
    """The prefix of a resource's past. Not below `ROOT`: who follows the present is not told of it."""
    return HISTORY + f"{kind}/{namespace}/{name}/".encode()
