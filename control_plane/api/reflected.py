"""The descriptors that reflection serves. Protobuf's pool finds services and messages by name, but no methods and fields; clients ask for those too."""

from typing import Any, Final

from google.protobuf import descriptor_pool

_POOL: Final[Any] = descriptor_pool.Default()


class Pool:
    """The default pool, that also finds what stands inside of services and messages. Raises KeyError like that one."""

    def FindFileContainingSymbol(self, name: str) -> Any:
        """The file of a name such as `remora.mesh.v1.Mesh.Nodes`."""
        try:
            return _POOL.FindFileContainingSymbol(name)
        except KeyError:
            outer, _, inner = name.rpartition(".")
            if inner not in _members(outer):
                raise
            return _POOL.FindFileContainingSymbol(outer)

    def __getattr__(self, name: str) -> Any:
        return getattr(_POOL, name)


def _members(name: str) -> Any:
    """By name, of a service or a message. Raises KeyError."""
    try:
        return _POOL.FindServiceByName(name).methods_by_name
    except KeyError:
        return _POOL.FindMessageTypeByName(name).fields_by_name
