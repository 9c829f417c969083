"""An instance's identity: its key is made here, its certificate is asked for, served to the data plane beside us, and renewed.

What is in force stays in force while the control plane is away, until it expires. The control plane is told what is in force, so that it
drops nothing that is still used, and when we leave.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import random, sample
from typing import Any, Final, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.identity import possession, secret_file
from control_plane.identity.authority import pem_of
from control_plane.identity.tokens import pin
from proto.mesh.v1 import identity_pb2, identity_pb2_grpc
from remora import local_secret
from remora.agent.registration import NO_PROXY
from remora.agent.secrets import Papers, SecretsServer

log = logging.getLogger("remora.identity")

T = TypeVar("T")
CALL_TIMEOUT_S: Final = 5.0
FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 5.0
LOOK_AGAIN_S: Final = 10.0
"""At a control plane that has no identities."""
CONFIRM_S: Final = 10.0
"""The data plane gets so long to take new papers; then it is waited for on."""
LEAVE_S: Final = 1.0
_OPTIONS: Final = (*NO_PROXY, ("grpc.max_reconnect_backoff_ms", 1000))


class Refused(Exception):
    """There is no identity for us; the text says why and what would help."""


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate with all that belongs to it."""

    key: ec.EllipticCurvePrivateKey
    chain: bytes
    trust: identity_pb2.Trust
    renew_at: datetime
    not_after: datetime

    def papers(self) -> Papers:
        """For the data plane."""
        return Papers(self.chain, pem_of(self.key), b"".join(root.certificate for root in self.trust.roots))

    @property
    def root(self) -> str:
        """The fingerprint under which it was signed; empty if that root is trusted no more."""
        try:
            *_, above = x509.load_pem_x509_certificates(self.chain)
            for root in self.trust.roots:
                with suppress(Exception):  # it raises four kinds, and all say: not this one
                    above.verify_directly_issued_by(x509.load_pem_x509_certificate(root.certificate))
                    return root.fingerprint
        except ValueError:
            pass
        return ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who we are to be, and where that is decided."""

    servers: tuple[tuple[str, int], ...]
    namespace: str
    name: str
    node_id: str
    join_token: str = ""
    """Empty: the local secret, or what was kept of an earlier run."""


class Identity:
    """One for an instance; `run` never ends by itself, but raises Refused if there is no way to a first certificate."""

    def __init__(self, wanted: Wanted, server: SecretsServer, kept: Path | None, say: Callable[[str], None]) -> None:
        """`kept` is where key and certificate outlive this process; None keeps them in memory only."""
        self._wanted = wanted
        self._server = server
        self._kept = kept
        self._say = say
        self._channels = [
            ((host, port), grpc.aio.insecure_channel(f"{host}:{port}", options=_OPTIONS))
            for host, port in wanted.servers
        ]
        self._is_due = asyncio.Event()
        self._trust: identity_pb2.Trust | None = None
        """The newest that was heard of."""
        self._confirming: asyncio.Task[None] | None = None
        self._is_certificate_refused = False
        """What we hold proves nothing any more: its root was dropped."""
        self.held: Held | None = None
        self.is_known = asyncio.Event()
        """Set once it is known whether there are identities: `held`, or None if the mesh has none."""

    async def run(self) -> None:
        """Get a certificate and keep it fresh. Raises Refused."""
        self._restore()
        following = asyncio.create_task(self._follow_trust())
        try:
            while True:
                if self._renews_in() <= 0.0 or self._is_due.is_set():
                    self._is_due.clear()
                    await self._get()
                wait_s = self._renews_in()
                if wait_s <= 0.0:
                    wait_s = LOOK_AGAIN_S  # there are none to be had
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._is_due.wait()
        finally:
            tasks = [task for task in (following, self._confirming) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _renews_in(self) -> float:
        """Seconds; 0 without a certificate."""
        return (self.held.renew_at - datetime.now(UTC)).total_seconds() if self.held is not None else 0.0

    async def close(self) -> None:
        """Say that we leave, if somebody hears it, and let go of the connections."""
        if self.held is not None:
            with suppress(grpc.aio.AioRpcError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._confirm(self.held, leaves=True)
        for _, channel in self._channels:
            await channel.close()

    # -- a certificate --------------------------------------------------------------------------------

    async def _get(self) -> None:
        """A new certificate, tried until there is one; none if the mesh has no identities. Raises Refused."""
        failures = 0
        while True:
            try:
                held = await self._issue()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self.is_known.set()
                    return
                if error.code() is grpc.StatusCode.PERMISSION_DENIED and not self._is_certificate_refused:
                    self._is_certificate_refused = self.held is not None
                self._refuse_if_final(error)
                if failures == 0:
                    log.info("no certificate yet: %s %s", error.code().name, error.details())
                failures += 1
                if self.held is not None and datetime.now(UTC) > self.held.not_after and failures == 1:
                    self._say(f"the certificate has expired, and there is no other yet: {error.details()}")
                wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
                await asyncio.sleep(wait * (0.5 + random()))
                continue
            self._is_certificate_refused = False
            self._take(held)
            self._keep(held)
            self.is_known.set()
            return

    def _refuse_if_final(self, error: grpc.aio.AioRpcError) -> None:
        """Raises Refused where trying again is of no use."""
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return
        if self.held is not None and datetime.now(UTC) < self.held.not_after:
            return  # there is time: an operator may mend it
        wanted = self._wanted
        raise Refused(
            f"no identity for {wanted.name}.{wanted.namespace}: {error.details()}; "
            f"get a token with `remora token create --service {wanted.name}.{wanted.namespace}` where the control plane "
            "runs and give it as REMORA_JOIN_TOKEN, or do without with --no-mtls"
        )

    async def _issue(self) -> Held:
        key = ec.generate_private_key(ec.SECP256R1())
        request = self._request(key)
        answer: identity_pb2.IssueResponse = await self._ask("Issue", request)
        token = self._wanted.join_token
        if (
            token
            and self.held is None
            and not any(root.fingerprint.startswith(pin(token)) for root in answer.trust.roots)
        ):
            raise Refused("the control plane is not of the mesh that the join token is for: it has another root")
        self._trust = answer.trust
        return Held(
            key,
            answer.chain,
            answer.trust,
            answer.renew_at.ToDatetime(UTC),
            answer.not_after.ToDatetime(UTC),
        )

    def _request(self, key: ec.EllipticCurvePrivateKey) -> identity_pb2.IssueRequest:
        """For a certificate for this key, with the best proof that there is; none where only a local secret may help."""
        wanted = self._wanted
        data = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .sign(key, hashes.SHA256())
            .public_bytes(serialization.Encoding.DER)
        )
        request = identity_pb2.IssueRequest(
            signing_request=data, namespace=wanted.namespace, name=wanted.name, node_id=wanted.node_id
        )
        held = self.held
        if held is not None and datetime.now(UTC) < held.not_after and not self._is_certificate_refused:
            proof = possession.payload(possession.RENEW, data, wanted.node_id.encode())
            request.certificate.CopyFrom(possession.show(held.chain, held.key, proof))
        elif wanted.join_token:
            request.join_token = wanted.join_token
        return request

    async def _ask(self, method: str, request: Any) -> Any:
        """The first control plane that answers. Raises AioRpcError."""
        failed: grpc.aio.AioRpcError | None = None
        is_unproven = method == "Issue" and request.WhichOneof("proof") in (None, "local_secret")
        for server, channel in sample(self._channels, len(self._channels)):
            stub: Any = identity_pb2_grpc.IdentityStub(channel)
            if is_unproven:
                # Each replica has a secret of its own. Without it, it is asked all the same: it may be one without identities.
                request.local_secret = local_secret.find(*server) or "none"
            try:
                return await getattr(stub, method)(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                failed = error
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
        assert failed is not None
        raise failed

    def _take(self, held: Held) -> None:
        """From now on this one."""
        self.held = held
        version = self._server.put(held.papers())
        if self._confirming is not None:
            self._confirming.cancel()
        self._confirming = asyncio.create_task(self._confirm_in_force(held, version))

    # -- trust ----------------------------------------------------------------------------------------

    async def _follow_trust(self) -> None:
        """Hear of every change of whom the mesh trusts."""
        failures = 0
        while True:
            _, channel = self._channels[failures % len(self._channels)]
            stub: Any = identity_pb2_grpc.IdentityStub(channel)
            try:
                async for trust in stub.Follow(identity_pb2.FollowRequest()):
                    failures = 0
                    self._on_trust(trust)
            except grpc.aio.AioRpcError as error:
                log.debug("trust: %s %s", error.code().name, error.details())
            failures += 1
            wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
            await asyncio.sleep(wait * (0.5 + random()))

    def _on_trust(self, trust: identity_pb2.Trust) -> None:
        held = self.held
        if held is None:
            if self.is_known.is_set():
                self._is_due.set()  # the mesh had none, and has some now
            return
        if trust.generation > held.trust.generation:
            fresh = Held(held.key, held.chain, trust, held.renew_at, held.not_after)
            self._take(fresh)
            self._keep(fresh)
            if fresh.root != trust.issuing:
                self._is_due.set()

    async def _confirm_in_force(self, held: Held, version: int) -> None:
        """Tell the control plane once the data plane has taken it."""
        while True:
            try:
                async with asyncio.timeout(CONFIRM_S):
                    await self._server.in_force(version)
                break
            except TimeoutError:
                if self._server.refused:
                    self._say(f"the sidecar does not take its certificate: {self._server.refused}")
                if not self._server.has_subscribers:
                    break  # nobody uses it: whoever will, gets the newest
        failures = 0
        while True:
            try:
                await self._confirm(held)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    log.warning("not confirmed: %s", error.details())
                failures += 1
                await asyncio.sleep(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10)) * (0.5 + random()))

    async def _confirm(self, held: Held, *, leaves: bool = False) -> None:
        """Raises AioRpcError."""
        request = identity_pb2.ConfirmRequest(
            node_id=self._wanted.node_id,
            generation=held.trust.generation,
            leaves=leaves,
            signed_at=int(datetime.now(UTC).timestamp()),
        )
        request.certificate.CopyFrom(possession.show(held.chain, held.key, possession.confirmation(request)))
        await self._ask("Confirm", request)

    # -- what outlives us -----------------------------------------------------------------------------

    def _keep(self, held: Held) -> None:
        if self._kept is None:
            return
        text = json.dumps(
            {
                "key": pem_of(held.key).decode(),
                "chain": held.chain.decode(),
                "trust": held.trust.SerializeToString().hex(),
                "renewAt": held.renew_at.isoformat(),
                "notAfter": held.not_after.isoformat(),
            }
        )
        with suppress(OSError):  # then there is none at the next start
            self._kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            secret_file.write(self._kept, text.encode())

    def _restore(self) -> None:
        if self._kept is None:
            return
        try:
            if self._kept.stat().st_mode & 0o077:
                return
            found = json.loads(self._kept.read_text())
            key = serialization.load_pem_private_key(found["key"].encode(), None)
            held = Held(
                key if isinstance(key, ec.EllipticCurvePrivateKey) else ec.generate_private_key(ec.SECP256R1()),
                found["chain"].encode(),
                identity_pb2.Trust.FromString(bytes.fromhex(found["trust"])),
                datetime.fromisoformat(found["renewAt"]),
                datetime.fromisoformat(found["notAfter"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        if datetime.now(UTC) < held.not_after:
            self._take(held)
            self.is_known.set()
