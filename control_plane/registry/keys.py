"""Where things stand in the store."""

from typing import Final

RESOURCES: Final = b"/remora/v1/resources/"
INSTANCES: Final = b"/remora/v1/instances/"
ROOT: Final = b"/remora/v1/"


def resource(kind: str, namespace: str, name: str) -> bytes:
    """The key of a resource."""
    return RESOURCES + f"{kind}/{namespace}/{name}".encode()


def instance(namespace: str, service: str, instance_id: str) -> bytes:
    """The key of an instance."""
    return INSTANCES + f"{namespace}/{service}/{instance_id}".encode()
