"""Where things stand in the store."""

from typing import Final

RESOURCES: Final = b"/remora/v1/resources/"
INSTANCES: Final = b"/remora/v1/instances/"
HISTORY: Final = b"/remora/history/v1/"
ROOT: Final = b"/remora/v1/"
TRUST: Final = ROOT + b"trust"
"""Whom the mesh trusts."""


def resource(kind: str, namespace: str, name: str) -> bytes:
    """The key of a resource."""
    return RESOURCES + f"{kind}/{namespace}/{name}".encode()


def instance(namespace: str, service: str, instance_id: str) -> bytes:
    """The key of an instance."""
    return INSTANCES + f"{namespace}/{service}/{instance_id}".encode()


def history(kind: str, namespace: str, name: str) -> bytes:
    """The prefix of a resource's past. Not below `ROOT`: who follows the present is not told of it."""
    return HISTORY + f"{kind}/{namespace}/{name}/".encode()
