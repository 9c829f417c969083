"""The authority at work: who asks, may it, sign. Everything that is decided by the state of the mesh is read from the store each time,
so that no replica signs under a root that another has left.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import random
from typing import Final

from cryptography import x509
from google.protobuf.message import DecodeError

from control_plane.identity import possession, signing_request, trust
from control_plane.identity.authority import LEAF_LIFE, Authority, Issued, fingerprint, pem, utc_now
from control_plane.identity.holders import Holders
from control_plane.identity.keyring import Keyring, KeyringError
from control_plane.identity.possession import NotProven
from control_plane.identity.spiffe import SpiffeId
from control_plane.identity.tokens import Tokens
from control_plane.identity.trust import NotNow, StepValue
from control_plane.registry import keys
from control_plane.store.contract import Compare, Put, Store, StoreError
from proto.mesh.v1 import identity_pb2

log = logging.getLogger("remora.identity")

CLOCK_SKEW_S: Final = 300
"""Between a holder's clock and ours, for what is signed with a time."""
MAX_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """How this control plane issues."""

    trust_domain: str
    local_secret: str = ""
    """Whoever shows it may be any service: it stands in a file of the user who runs us. Empty: nobody."""
    given: Authority | None = None
    """The user's own, for a mesh that has none yet."""
    leaf_life: timedelta = LEAF_LIFE


Attestor = Callable[[identity_pb2.IssueRequest, SpiffeId, identity_pb2.Trust, datetime], Awaitable[None]]
"""Checks a proof: that whoever asks is this identity. Raises NotProven."""


class Issuer:
    """One for a control plane. Raises StoreError and KeyringError from every method that asks them."""

    def __init__(
        self, store: Store, keyring: Keyring, settings: Settings, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._settings = settings
        self._clock = clock
        self.tokens = Tokens(store)
        self.holders = Holders(store)
        self._attestors: Mapping[str, Attestor] = {
            "join_token": self._by_token,
            "local_secret": self._by_local_secret,
            "certificate": self._by_certificate,
        }
        """By the kind of proof."""

    # -- the root -------------------------------------------------------------------------------------

    async def prepare(self) -> identity_pb2.Trust:
        """Make or find the root, and what signs below it. Raises KeyringError."""
        given = self._settings.given
        with self._keyring.locked():
            found = await self._stored()
            if found is None:
                authority = self._first_root(given)
                fresh = trust.first(self._settings.trust_domain, _as_root(authority.root))
                put = Put(keys.TRUST, fresh.SerializeToString(deterministic=True))
                await self._store.txn([Compare(keys.TRUST, 0)], [put])
                found = await self._stored()
            assert found is not None
        current = found[0]
        if current.trust_domain != self._settings.trust_domain:
            raise KeyringError(
                f'the mesh of this store has the trust domain "{current.trust_domain}", not "{self._settings.trust_domain}"'
            )
        if given is not None:
            if fingerprint(given.root) not in {root.fingerprint for root in current.roots}:
                raise KeyringError(
                    "the mesh of this store has another root; put the new one in with `remora cert rotate --stage add`"
                )
            if fingerprint(given.root) not in self._keyring.roots():
                self._keyring.add(given)  # a replica with a folder of its own, beside one that was here first
        self._keyring.signing(current.issuing, self._clock())
        return current

    def _first_root(self, given: Authority | None) -> Authority:
        if given is not None:
            return self._keyring.add(given)
        known = self._keyring.roots()
        if len(known) == 1:
            return self._keyring.root(known[0]) or self._keyring.signing(known[0], self._clock())
        return self._keyring.create(self._settings.trust_domain, self._clock())

    async def _stored(self) -> tuple[identity_pb2.Trust, int] | None:
        item = await self._store.get(keys.TRUST)
        if item is None:
            return None
        try:
            return identity_pb2.Trust.FromString(item.value), item.mod_revision
        except DecodeError:
            raise StoreError("what is stored as the mesh's trust is none; a later release wrote it") from None

    async def trust(self) -> identity_pb2.Trust:
        """Whom the mesh trusts now."""
        found = await self._stored()
        if found is None:
            raise StoreError("the mesh has no root any more: somebody deleted it from the store")
        return found[0]

    # -- leaves ---------------------------------------------------------------------------------------

    async def issue(self, request: identity_pb2.IssueRequest) -> tuple[Issued, identity_pb2.Trust]:
        """Sign. Raises signing_request.BadRequest, NotProven."""
        now = self._clock()
        current = await self.trust()
        identity = SpiffeId(current.trust_domain, request.namespace, request.name)
        key = signing_request.read(request.signing_request, identity)  # first: a token is not used up by a bad request
        await self._attestors[str(request.WhichOneof("proof"))](request, identity, current, now)
        issued = self._keyring.signing(current.issuing, now).sign(key, identity, now, self._settings.leaf_life)
        await self.holders.issued(request.node_id, identity, issued, now)
        log.info(
            "issued %s to %s, serial %s, by %s", identity, request.node_id, issued.serial, request.WhichOneof("proof")
        )
        return issued, current

    async def _by_token(
        self, request: identity_pb2.IssueRequest, identity: SpiffeId, current: identity_pb2.Trust, now: datetime
    ) -> None:
        await self.tokens.redeem(request.join_token, identity.namespace, identity.name, now)

    async def _by_local_secret(
        self, request: identity_pb2.IssueRequest, identity: SpiffeId, current: identity_pb2.Trust, now: datetime
    ) -> None:
        self.check_local_secret(request.local_secret)

    async def _by_certificate(
        self, request: identity_pb2.IssueRequest, identity: SpiffeId, current: identity_pb2.Trust, now: datetime
    ) -> None:
        data = possession.payload(possession.RENEW, request.signing_request, request.node_id.encode())
        shown = possession.prove(request.certificate, data, current, now)
        if shown.identity != identity:
            raise NotProven(f"the certificate is for {shown.identity}, not for {identity}")

    def check_local_secret(self, given: str) -> None:
        """Raises NotProven."""
        secret = self._settings.local_secret
        if not secret or not hmac.compare_digest(secret.encode(), given.encode()):
            raise NotProven(
                "the local secret is not that of this control plane: was it started again, or by another user?"
            )

    async def confirm(self, request: identity_pb2.ConfirmRequest) -> None:
        """A holder says what it has in force. Raises NotProven."""
        now = self._clock()
        if abs(now.timestamp() - request.signed_at) > CLOCK_SKEW_S:
            raise NotProven("signed too long ago, or in the future: compare the clocks")
        data = possession.confirmation(request)
        shown = possession.prove(request.certificate, data, await self.trust(), now)
        if request.leaves:
            await self.holders.left(request.node_id, shown.identity)
        else:
            await self.holders.confirmed(request.node_id, shown, request.generation, now)

    # -- operators ------------------------------------------------------------------------------------

    async def create_token(self, namespace: str, name: str, ttl_s: int) -> tuple[str, datetime]:
        """A join token, and when it expires."""
        current = await self.trust()
        return await self.tokens.create(namespace, name, current.issuing, ttl_s, self._clock())

    async def who_holds(self) -> list[identity_pb2.Holder]:
        """Every certificate that is still good."""
        return await self.holders.all(self._clock())

    async def rotate(self, step: StepValue, *, force: bool) -> identity_pb2.Trust:
        """Take a step in changing the root. Raises NotNow."""
        for _ in range(MAX_ATTEMPTS):
            found = await self._stored()
            if found is None:
                raise StoreError("the mesh has no root any more: somebody deleted it from the store")
            current, revision = found
            now = self._clock()
            if step == identity_pb2.RotateRequest.INTERMEDIATE:
                self._keyring.signing(current.issuing, now, fresh=True)
                return current
            after = trust.check(current, step, await self.who_holds(), force=force)
            root = self._next_root(current, now) if after is trust.Stage.ADDED else None
            if after is trust.Stage.SWITCHED:
                self._keyring.signing(current.roots[-1].fingerprint, now)  # it must be possible before it is decided
            fresh = trust.advanced(current, after, root)
            put = Put(keys.TRUST, fresh.SerializeToString(deterministic=True))
            if (await self._store.txn([Compare(keys.TRUST, revision)], [put])).succeeded:
                log.warning("the change of the root is at %s, generation %d", after.value, fresh.generation)
                return fresh
        raise NotNow("somebody else changes the root at the same time; look again with `remora cert show`")

    def _next_root(self, current: identity_pb2.Trust, now: datetime) -> identity_pb2.Root:
        """The root that the user has put into the folder, or a new one."""
        given = self._keyring.take_next()
        return _as_root((given or self._keyring.create(current.trust_domain, now)).root)


def _as_root(certificate: x509.Certificate) -> identity_pb2.Root:
    root = identity_pb2.Root(fingerprint=fingerprint(certificate), certificate=pem(certificate))
    root.not_after.FromDatetime(certificate.not_valid_after_utc)
    return root


def renew_at(issued: Issued, now: datetime) -> datetime:
    """When its holder is to ask for the next one: when half of its life is over, by chance a tenth of it earlier or later."""
    return now + (issued.not_after - now) * (0.45 + 0.1 * random())
