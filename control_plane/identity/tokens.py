"""Join tokens: a secret that lets one instance of one service ask for its first certificate, once, and not for long.

    rmr1.ID.SECRET.PIN

The store holds a hash of the secret, so who reads the store can join as nobody. PIN is the beginning of the root's fingerprint: the one
who joins knows by it that it speaks with the mesh that it was invited to.
"""

import hmac
import re
import secrets
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

from google.protobuf.message import DecodeError

from control_plane.identity.possession import NotProven
from control_plane.store.contract import MIN_LEASE_TTL_S, Compare, Delete, Put, Store
from proto.mesh.v1 import identity_pb2

PREFIX: Final = b"/remora/identity/tokens/"
"""Outside of what is watched: nobody's configuration depends on it."""
DEFAULT_TTL_S: Final = 3600
PIN_DIGITS: Final = 32
_FORM: Final = re.compile(r"rmr1\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{32})", re.ASCII)
_REFUSED: Final = "the join token is not known: it was used, or has expired, or is for another mesh"
"""The same for all: whoever guesses learns nothing."""


def pin(token: str) -> str:
    """The beginning of the fingerprint of a root that the mesh must trust; empty if this is no token."""
    found = _FORM.fullmatch(token)
    return found[3] if found is not None else ""


class Tokens:
    """The tokens of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, namespace: str, name: str, root: str, ttl_s: int, now: datetime) -> tuple[str, datetime]:
        """A new token, and when it expires."""
        number, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        until = now + timedelta(seconds=ttl_s)
        kept = identity_pb2.JoinToken(namespace=namespace, name=name, hash=sha256(secret.encode()).digest())
        kept.expires_at.FromDatetime(until)
        lease = await self._store.grant(max(ttl_s, MIN_LEASE_TTL_S))
        key = PREFIX + number.encode()
        await self._store.txn([Compare(key, 0)], [Put(key, kept.SerializeToString(), lease)])
        return f"rmr1.{number}.{secret}.{root[:PIN_DIGITS]}", until

    async def redeem(self, token: str, namespace: str, name: str, now: datetime) -> None:
        """Use a token up. Raises NotProven."""
        found = _FORM.fullmatch(token)
        if found is None:
            raise NotProven("this is no join token; `remora token create --service NAME` makes one")
        key = PREFIX + found[1].encode()
        item = await self._store.get(key)
        if item is None:
            raise NotProven(_REFUSED)
        try:
            kept = identity_pb2.JoinToken.FromString(item.value)
        except DecodeError:
            raise NotProven(_REFUSED) from None
        if not hmac.compare_digest(kept.hash, sha256(found[2].encode()).digest()):
            raise NotProven(_REFUSED)
        if now >= kept.expires_at.ToDatetime(now.tzinfo):
            raise NotProven(_REFUSED)
        if (kept.namespace, kept.name) != (namespace, name):
            raise NotProven(f"the join token is for {kept.name}.{kept.namespace}, not for {name}.{namespace}")
        # Of two that come at once one gets through: the other's comparison fails.
        used = await self._store.txn([Compare(key, item.mod_revision)], [Delete(key)])
        if not used.succeeded:
            raise NotProven(_REFUSED)
        if item.lease:
            await self._store.revoke(item.lease)
