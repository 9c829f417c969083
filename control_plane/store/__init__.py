"""The store behind the control plane: `open_store` gives the one that a target names."""

from control_plane.store.contract import Store
from control_plane.store.embedded import EmbeddedStore

_ETCD = "etcd://"


async def open_store(target: str) -> Store:
    """`etcd://HOST:PORT,…` or a directory. Raises StoreError with a plain sentence, BadTarget if the target is none."""
    if target.startswith(_ETCD):
        # Imported here: a laptop's control plane does not need etcd's messages.
        from control_plane.store.etcd import EtcdStore

        return await EtcdStore.open(target)
    return await EmbeddedStore.open(target)


def shown(target: str) -> str:
    """The target for people and logs: without a user's name and password."""
    if not target.startswith(_ETCD):
        return target
    hosts, mark, options = target.removeprefix(_ETCD).partition("?")
    return _ETCD + hosts.rpartition("@")[2] + mark + options
