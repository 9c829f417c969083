"""The store behind the control plane: `open_store` gives the one that a target names."""

from control_plane.store.contract import Store
from control_plane.store.embedded import EmbeddedStore


async def open_store(target: str) -> Store:
    """`etcd://HOST:PORT,…` or a directory. Raises StoreError with a plain sentence."""
    if target.startswith("etcd://"):
        # Imported here: a laptop's control plane does not need etcd's messages.
        from control_plane.store.etcd import EtcdStore

        return await EtcdStore.open(target)
    return await EmbeddedStore.open(target)
