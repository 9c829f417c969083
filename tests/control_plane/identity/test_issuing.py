"""Certificates for those who prove who they are, over the real API; and what everybody else is told."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from control_plane.api.identity import SECRET
from control_plane.api.server import running
from control_plane.identity import possession
from control_plane.identity.issuer import Issuer, Settings
from control_plane.identity.keyring import Keyring
from control_plane.identity.possession import payload
from proto.mesh.v1 import identity_pb2, identity_pb2_grpc
from tests.certificates import Authority
from tests.control_plane.identity.requests import (
    CART,
    TRUST_DOMAIN,
    key,
    of_another_key,
    renewal,
    rsa_key,
    signing_request,
)
from tests.control_plane.plane import LOOPBACK, NO_PROXY

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOCAL = "the local secret"
OPERATOR = ((SECRET, LOCAL),)


@dataclass
class Mesh:
    """A control plane that signs, with a clock that a test may move."""

    identity: Any
    directory: Path
    offset: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    async def issue(self, **request: Any) -> identity_pb2.IssueResponse:
        """As cart in shop, unless it is said otherwise."""
        given = {"namespace": "shop", "name": "cart", "node_id": "cart~1", "signing_request": signing_request()}
        answer: identity_pb2.IssueResponse = await self.identity.Issue(
            identity_pb2.IssueRequest(**{**given, **request})
        )
        return answer

    async def token(self, name: str = "cart", namespace: str = "shop", ttl_s: int = 60) -> str:
        request = identity_pb2.CreateTokenRequest(name=name, namespace=namespace)
        request.ttl.FromSeconds(ttl_s)
        return str((await self.identity.CreateToken(request, metadata=OPERATOR)).token)

    async def rotate(self, stage: str, *, force: bool = False) -> identity_pb2.Trust:
        request = identity_pb2.RotateRequest(stage=identity_pb2.RotateRequest.Stage.Value(stage), force=force)
        trust: identity_pb2.Trust = (await self.identity.Rotate(request, metadata=OPERATOR)).trust
        return trust

    async def confirm(self, node_id: str, chain: bytes, private: Any, generation: int, *, leaves: bool = False) -> None:
        request = identity_pb2.ConfirmRequest(
            node_id=node_id, generation=generation, leaves=leaves, signed_at=int(self.now().timestamp())
        )
        request.certificate.CopyFrom(possession.show(chain, private, possession.confirmation(request)))
        await self.identity.Confirm(request)

    async def holders(self) -> identity_pb2.HoldersResponse:
        answer: identity_pb2.HoldersResponse = await self.identity.Holders(identity_pb2.HoldersRequest())
        return answer


@asynccontextmanager
async def mesh_in(directory: Path, **settings: Any) -> AsyncIterator[Mesh]:
    mesh = Mesh(None, directory)

    def issuing(store: Any) -> Issuer:
        kept = Settings(**{"trust_domain": TRUST_DOMAIN, "local_secret": LOCAL, **settings})
        return Issuer(store, Keyring(directory / "identity"), kept, mesh.now)

    async with (
        running(LOOPBACK, str(directory / "store"), None, issuing) as plane,
        grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", options=NO_PROXY) as channel,
    ):
        mesh.identity = identity_pb2_grpc.IdentityStub(channel)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh_in(tmp_path) as mesh:
        yield mesh


def leaf_of(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


@asynccontextmanager
async def refused(code: grpc.StatusCode, *texts: str) -> AsyncIterator[None]:
    """What is inside must be answered like this."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    for text in texts:
        assert text in (caught.value.details() or "")


# -- what is signed -----------------------------------------------------------------------------------


async def test_a_certificate_names_its_service_and_nothing_else(mesh: Mesh) -> None:
    private = key()
    answer = await mesh.issue(
        signing_request=signing_request(private, uris=(CART,), common_name="admin"), local_secret=LOCAL
    )
    leaf, intermediate = x509.load_pem_x509_certificates(answer.chain)
    assert leaf.public_key() == private.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [CART]
    assert "admin" not in leaf.subject.rfc4514_string(), "nothing but the key is taken from a request"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    leaf.verify_directly_issued_by(intermediate)
    [root] = answer.trust.roots
    intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(root.certificate))
    assert intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    life = leaf.not_valid_after_utc - mesh.now()
    assert timedelta(hours=23, minutes=59) < life <= timedelta(hours=24)
    until = answer.renew_at.ToDatetime(UTC) - mesh.now()
    assert 0.44 * life < until < 0.56 * life, "renewed when half of its life is over, give or take a tenth"


async def test_a_service_in_the_default_namespace_has_it_in_its_name(mesh: Mesh) -> None:
    answer = await mesh.issue(namespace="", local_secret=LOCAL)
    names = leaf_of(answer.chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["spiffe://shop.test/ns/default/sa/cart"]


@pytest.mark.parametrize("private", [ec.generate_private_key(ec.SECP384R1()), rsa_key(2048)], ids=["p384", "rsa2048"])
async def test_other_keys_that_are_strong_enough(mesh: Mesh, private: Any) -> None:
    answer = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    assert leaf_of(answer.chain).public_key() == private.public_key()


HOSTILE_REQUESTS: dict[str, tuple[Any, str]] = {
    "no PKCS#10": (b"hello", "no PKCS#10"),
    "a certificate": (Authority().pem, "no PKCS#10"),
    "cut off": (signing_request()[:-3], "no PKCS#10"),
    "something behind it": (signing_request() + b"\0", "no PKCS#10"),
    "oversized": (signing_request(dns=tuple(f"{number:060}.test" for number in range(140))), "signingRequest"),
    "signed with another key": (of_another_key(), "not signed with its own key"),
    "an RSA key of 1024 bits": (signing_request(rsa_key(1024)), "an RSA key of 1024 bits; 2048 to 4096 are taken"),
    "RSA with the exponent 3": (signing_request(rsa_key(2048, 3)), "exponent 3"),
    "P-521": (signing_request(ec.generate_private_key(ec.SECP521R1())), "secp521r1; P-256 and P-384 are taken"),
    "a curve of Bitcoin": (signing_request(ec.generate_private_key(ec.SECP256K1())), "P-256"),
    "Ed25519, which Envoy cannot use": (signing_request(ed25519.Ed25519PrivateKey.generate()), "use EC P-256"),
    "another service's name": (signing_request(uris=(CART.replace("cart", "till"),)), f"not for {CART}"),
    "another trust domain": (signing_request(uris=("spiffe://evil.test/ns/shop/sa/cart",)), f"not for {CART}"),
    "its own name and another": (signing_request(uris=(CART, CART.replace("cart", "till"))), f"not for {CART}"),
    "its own name and a DNS name": (signing_request(uris=(CART,), dns=("till.shop",)), f"not for {CART}"),
    "to be an authority": (signing_request(is_authority=True), "only leaves are signed"),
}


@pytest.mark.parametrize("case", HOSTILE_REQUESTS)
async def test_a_hostile_request_is_refused_and_uses_no_token_up(mesh: Mesh, case: str) -> None:
    data, why = HOSTILE_REQUESTS[case]
    token = await mesh.token()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, why):
        await mesh.issue(signing_request=data, join_token=token)
    assert (await mesh.issue(join_token=token)).chain


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "cart/../till"},
        {"name": "Cart"},
        {"name": ""},
        {"namespace": "shop/sa/till"},
        {"node_id": ""},
        {"signing_request": b""},
    ],
)
async def test_a_name_that_would_be_another_identity_is_refused(mesh: Mesh, fields: dict[str, Any]) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await mesh.issue(local_secret=LOCAL, **fields)


async def test_without_a_proof_nothing_is_signed(mesh: Mesh) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "proof"):
        await mesh.issue()


# -- join tokens --------------------------------------------------------------------------------------


async def test_a_join_token_works_once(mesh: Mesh) -> None:
    token = await mesh.token()
    assert (await mesh.issue(join_token=token)).chain
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "was used, or has expired"):
        await mesh.issue(join_token=token)


async def test_of_two_that_use_a_token_at_once_one_gets_a_certificate(mesh: Mesh) -> None:
    import asyncio

    token = await mesh.token()
    answers = await asyncio.gather(*(mesh.issue(join_token=token) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, identity_pb2.IssueResponse) for answer in answers) == 1


async def test_a_join_token_expires(mesh: Mesh) -> None:
    token = await mesh.token(ttl_s=60)
    mesh.offset = timedelta(seconds=61)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "was used, or has expired"):
        await mesh.issue(join_token=token)


async def test_a_join_token_is_for_one_service(mesh: Mesh) -> None:
    token = await mesh.token("till")
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "for till.shop, not for cart.shop"):
        await mesh.issue(join_token=token)
    assert (await mesh.issue(name="till", join_token=token)).chain, "and is not used up by that"


async def test_guesses_of_a_token_learn_nothing(mesh: Mesh) -> None:
    token = await mesh.token()
    head, number, secret, pin = token.split(".")
    other = "A" if secret[0] != "A" else "B"
    for guess in (
        f"{head}.{number}.{other}{secret[1:]}.{pin}",
        f"{head}.{'0' * 16}.{secret}.{pin}",
        token.upper(),
        f"{token}\n",
        "rmr1",
    ):
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await mesh.issue(join_token=guess)
    assert (await mesh.issue(join_token=token)).chain


async def test_who_reads_the_store_finds_no_token(mesh: Mesh) -> None:
    token = await mesh.token()
    secret = token.split(".")[2].encode()
    kept = b"".join(path.read_bytes() for path in (mesh.directory / "store").rglob("*") if path.is_file())
    assert b"/remora/identity/tokens/" in kept
    assert secret not in kept


@pytest.mark.parametrize("metadata", [(), ((SECRET, "guess"),)])
async def test_only_an_operator_makes_tokens_and_changes_the_root(mesh: Mesh, metadata: Any) -> None:
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "REMORA_OPERATOR_SECRET"):
        await mesh.identity.CreateToken(identity_pb2.CreateTokenRequest(name="cart"), metadata=metadata)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "REMORA_OPERATOR_SECRET"):
        await mesh.identity.Rotate(identity_pb2.RotateRequest(stage=identity_pb2.RotateRequest.ADD), metadata=metadata)


async def test_without_a_local_secret_nobody_has_it(tmp_path: Path) -> None:
    async with mesh_in(tmp_path, local_secret="") as mesh:
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await mesh.issue(local_secret="x")
        async with refused(grpc.StatusCode.PERMISSION_DENIED):
            await mesh.identity.CreateToken(identity_pb2.CreateTokenRequest(name="cart"), metadata=((SECRET, ""),))


# -- renewal ------------------------------------------------------------------------------------------


async def test_an_old_certificate_gets_a_new_one_with_a_new_key(mesh: Mesh) -> None:
    old_key, new_key = key(), key()
    old = await mesh.issue(signing_request=signing_request(old_key), local_secret=LOCAL)
    data = signing_request(new_key)
    fresh = await mesh.issue(signing_request=data, certificate=renewal(old.chain, old_key, data))
    assert leaf_of(fresh.chain).public_key() == new_key.public_key()
    assert leaf_of(fresh.chain).serial_number != leaf_of(old.chain).serial_number


async def test_what_was_heard_of_a_renewal_is_of_no_use_for_another_key_or_node(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    data = signing_request()
    heard = renewal(old.chain, private, data)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "not signed with the certificate's key"):
        await mesh.issue(signing_request=signing_request(), certificate=heard)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "not signed with the certificate's key"):
        await mesh.issue(signing_request=data, certificate=heard, node_id="cart~2")


async def test_a_signature_for_another_purpose_renews_nothing(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    data = signing_request()
    other = possession.show(old.chain, private, payload(possession.CONFIRM, data, b"cart~1"))
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "not signed with the certificate's key"):
        await mesh.issue(signing_request=data, certificate=other)


async def test_a_certificate_renews_its_own_name_only(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    data = signing_request()
    async with refused(grpc.StatusCode.PERMISSION_DENIED, f"for {CART}, not for spiffe://shop.test/ns/shop/sa/till"):
        await mesh.issue(name="till", signing_request=data, certificate=renewal(old.chain, private, data))


async def test_an_expired_certificate_renews_nothing(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    mesh.offset = timedelta(hours=24, seconds=1)
    data = signing_request()
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "join again"):
        await mesh.issue(signing_request=data, certificate=renewal(old.chain, private, data))


def _strangers() -> dict[str, tuple[Any, str]]:
    """Leaves that another authority signed, and one that a leaf of the mesh signed."""
    other = Authority("remora root")
    return {
        "self-made authority": (other.sign(uri=(CART,)), "leads to no root"),
        "another trust domain": (other.sign(uri=(CART.replace("shop.test", "evil.test"),)), "trust domain evil.test"),
        "two names": (other.sign(uri=(CART, CART)), "2 URIs"),
        "no name": (other.sign(), "for nobody"),
        "a DNS name": (other.sign(dns=("cart.shop",)), "0 URIs"),
        "a path that is none": (other.sign(uri=(f"{CART}/../till",)), "is not spiffe://"),
    }


@pytest.mark.parametrize("case", _strangers())
async def test_a_certificate_of_another_authority_proves_nothing(mesh: Mesh, case: str) -> None:
    from cryptography.hazmat.primitives import serialization

    leaf, why = _strangers()[case]
    private = serialization.load_pem_private_key(leaf.key, None)
    data = signing_request()
    async with refused(grpc.StatusCode.PERMISSION_DENIED, why):
        await mesh.issue(signing_request=data, certificate=renewal(leaf.chain, private, data))  # type: ignore[arg-type]


async def test_a_leaf_of_the_mesh_is_no_authority(mesh: Mesh) -> None:
    """The holder of a certificate signs one for another service with it."""
    private, forged_key = key(), key()
    own = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    leaf = leaf_of(own.chain)
    name = CART.replace("cart", "till")
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(leaf.subject)
        .public_key(forged_key.public_key())
        .serial_number(7)
        .not_valid_before(mesh.now() - timedelta(hours=1))
        .not_valid_after(mesh.now() + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    from cryptography.hazmat.primitives import serialization

    chain = forged.public_bytes(serialization.Encoding.PEM) + own.chain
    data = signing_request()
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "leads to no root"):
        await mesh.issue(name="till", signing_request=data, certificate=renewal(chain, forged_key, data))


# -- the root -----------------------------------------------------------------------------------------


async def test_keys_are_in_files_that_nobody_else_reads(mesh: Mesh) -> None:
    await mesh.issue(local_secret=LOCAL)
    files = [path for path in (mesh.directory / "identity").rglob("*") if path.is_file()]
    keys = [path for path in files if path.suffix == ".key"]
    assert len(keys) == 2, "of the root, and of what signs below it"
    assert {path.stat().st_mode & 0o077 for path in keys} == {0}
    assert (mesh.directory / "identity").stat().st_mode & 0o077 == 0


async def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    from control_plane.identity.keyring import KeyringError

    async with mesh_in(tmp_path):
        pass
    for path in (tmp_path / "identity").rglob("*.key"):
        path.chmod(0o644)
    with pytest.raises(KeyringError, match="others can read it \\(mode 644\\)"):
        async with mesh_in(tmp_path):
            pass


async def test_the_root_outlives_the_control_plane(tmp_path: Path) -> None:
    async with mesh_in(tmp_path) as mesh:
        before = (await mesh.holders()).trust
        private = key()
        old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    async with mesh_in(tmp_path) as mesh:
        assert (await mesh.holders()).trust == before
        data = signing_request()
        assert (await mesh.issue(signing_request=data, certificate=renewal(old.chain, private, data))).chain


async def test_a_root_of_the_user(tmp_path: Path) -> None:
    from control_plane.identity import authority

    given = authority.new_root("shop.test", datetime.now(UTC))
    async with mesh_in(tmp_path, given=given) as mesh:
        [root] = (await mesh.holders()).trust.roots
        assert root.certificate == authority.pem(given.root)


async def test_an_intermediate_of_the_user_whose_root_is_elsewhere(tmp_path: Path) -> None:
    from control_plane.identity import authority

    now = datetime.now(UTC)
    root = authority.new_root("shop.test", now)
    async with mesh_in(tmp_path, given=root.intermediate(now)) as mesh:
        answer = await mesh.issue(local_secret=LOCAL)
        assert [each.fingerprint for each in answer.trust.roots] == [authority.fingerprint(root.root)]
    assert sum(1 for _ in (tmp_path / "identity").rglob("root.key")) == 0


async def test_a_replica_whose_folder_is_empty_takes_the_users_root_too(tmp_path: Path) -> None:
    from control_plane.identity import authority

    given = authority.new_root("shop.test", datetime.now(UTC))
    async with mesh_in(tmp_path, given=given) as mesh:
        before = (await mesh.holders()).trust
    shutil.rmtree(tmp_path / "identity")
    async with mesh_in(tmp_path, given=given) as mesh:
        assert (await mesh.issue(local_secret=LOCAL)).trust == before


async def test_another_trust_domain_than_that_of_the_store_is_refused(tmp_path: Path) -> None:
    from control_plane.identity.keyring import KeyringError

    async with mesh_in(tmp_path):
        pass
    with pytest.raises(KeyringError, match=r'has the trust domain "shop.test", not "other.test"'):
        async with mesh_in(tmp_path, trust_domain="other.test"):
            pass


# -- changing the root --------------------------------------------------------------------------------


async def test_the_root_changes_in_three_steps_which_wait_for_every_holder(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    await mesh.confirm("cart~1", old.chain, private, old.trust.generation)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "at steady", "next step is add, not drop"):
        await mesh.rotate("DROP")

    added = await mesh.rotate("ADD")
    assert len(added.roots) == 2
    assert added.issuing == old.trust.issuing
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "1 live peers do not trust the new root yet: cart~1"):
        await mesh.rotate("SWITCH")
    await mesh.confirm("cart~1", old.chain, private, added.generation)

    switched = await mesh.rotate("SWITCH")
    assert switched.issuing == added.roots[1].fingerprint
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "1 live peers still use the old root: cart~1", CART):
        await mesh.rotate("DROP")

    fresh_key = key()
    data = signing_request(fresh_key)
    fresh = await mesh.issue(signing_request=data, certificate=renewal(old.chain, private, data))
    intermediate = x509.load_pem_x509_certificates(fresh.chain)[1]
    intermediate.verify_directly_issued_by(x509.load_pem_x509_certificate(switched.roots[1].certificate))
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "still use the old root: cart~1"):
        await mesh.rotate("DROP")  # it has a new certificate, and has not said that it uses it
    await mesh.confirm("cart~1", fresh.chain, fresh_key, switched.generation)

    dropped = await mesh.rotate("DROP")
    assert [root.fingerprint for root in dropped.roots] == [switched.issuing]
    data = signing_request()
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "leads to no root"):
        await mesh.issue(signing_request=data, certificate=renewal(old.chain, private, data))


async def test_a_second_change_leads_to_a_third_root_not_back_to_the_first(mesh: Mesh) -> None:
    seen = {(await mesh.holders()).trust.issuing}
    for _ in range(2):
        for stage in ("ADD", "SWITCH", "DROP"):
            trust = await mesh.rotate(stage)
        seen.add(trust.issuing)
    assert len(seen) == 3


async def test_a_node_that_left_holds_nothing_back(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    await mesh.rotate("ADD")
    await mesh.confirm("cart~1", old.chain, private, 1, leaves=True)
    assert not (await mesh.holders()).holders
    await mesh.rotate("SWITCH")


async def test_a_holder_whose_certificate_expired_holds_nothing_back(mesh: Mesh) -> None:
    await mesh.issue(local_secret=LOCAL)
    await mesh.rotate("ADD")
    mesh.offset = timedelta(hours=25)
    await mesh.rotate("SWITCH")


async def test_an_operator_may_insist(mesh: Mesh) -> None:
    await mesh.issue(local_secret=LOCAL)
    await mesh.rotate("ADD")
    await mesh.rotate("SWITCH", force=True)
    assert len((await mesh.rotate("DROP", force=True)).roots) == 1


async def test_nobody_confirms_or_leaves_for_another_service(mesh: Mesh) -> None:
    await mesh.issue(local_secret=LOCAL)
    theirs = key()
    till = await mesh.issue(name="till", node_id="till~1", signing_request=signing_request(theirs), local_secret=LOCAL)
    await mesh.confirm("cart~1", till.chain, theirs, 99, leaves=True)
    assert [holder.node_id for holder in (await mesh.holders()).holders] == ["cart~1", "till~1"]


async def test_a_confirmation_cannot_be_repeated_later(mesh: Mesh) -> None:
    private = key()
    own = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    request = identity_pb2.ConfirmRequest(node_id="cart~1", generation=1, signed_at=int(mesh.now().timestamp()))
    request.certificate.CopyFrom(possession.show(own.chain, private, possession.confirmation(request)))
    await mesh.identity.Confirm(request)
    mesh.offset = timedelta(minutes=6)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "compare the clocks"):
        await mesh.identity.Confirm(request)


async def test_a_new_intermediate_needs_nobody_to_know(mesh: Mesh) -> None:
    before = await mesh.issue(local_secret=LOCAL)
    await mesh.rotate("INTERMEDIATE")
    after = await mesh.issue(local_secret=LOCAL)
    assert after.trust == before.trust
    old, new = (x509.load_pem_x509_certificates(answer.chain)[1] for answer in (before, after))
    assert old.serial_number != new.serial_number


async def test_followers_are_told_of_every_step(mesh: Mesh) -> None:
    following = mesh.identity.Follow(identity_pb2.FollowRequest())
    assert len((await following.read()).roots) == 1
    await mesh.rotate("ADD")
    told = await following.read()
    assert (told.generation, len(told.roots)) == (2, 2)
    following.cancel()


async def test_a_node_that_never_confirms_does_not_fill_the_store(mesh: Mesh) -> None:
    for _ in range(18):
        last = await mesh.issue(local_secret=LOCAL)
    holders = (await mesh.holders()).holders
    assert len(holders) == 16
    assert f"{leaf_of(last.chain).serial_number:x}" in {holder.serial for holder in holders}


async def test_a_node_that_left_and_comes_back_with_its_certificate_is_known_again(mesh: Mesh) -> None:
    private = key()
    old = await mesh.issue(signing_request=signing_request(private), local_secret=LOCAL)
    await mesh.confirm("cart~1", old.chain, private, 1, leaves=True)
    await mesh.confirm("cart~1", old.chain, private, 1)
    [holder] = (await mesh.holders()).holders
    assert (holder.node_id, holder.root, holder.generation) == ("cart~1", old.trust.issuing, 1)
    await mesh.rotate("ADD")
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "cart~1"):
        await mesh.rotate("SWITCH")


async def test_a_control_plane_without_identities_says_so(tmp_path: Path) -> None:
    async with (
        running(LOOPBACK, str(tmp_path), None) as plane,
        grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", options=NO_PROXY) as channel,
    ):
        identity = identity_pb2_grpc.IdentityStub(channel)
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "--no-mtls"):
            await identity.Issue(
                identity_pb2.IssueRequest(signing_request=b"x", name="cart", node_id="n", local_secret="x")
            )
