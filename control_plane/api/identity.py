"""The identities' entrance (remora.mesh.v1.Identity): check, call, answer."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final, NoReturn

import grpc

from control_plane.api.refused import Refused
from control_plane.identity import issuer as issuing
from control_plane.identity.issuer import Issuer
from control_plane.identity.keyring import KeyringError
from control_plane.identity.possession import NotProven
from control_plane.identity.signing_request import BadRequest
from control_plane.identity.tokens import DEFAULT_TTL_S
from control_plane.identity.trust import NotNow
from control_plane.registry.mirror import Mirror
from control_plane.registry.state import State
from control_plane.resources.kinds import DEFAULT_NAMESPACE
from proto.mesh.v1 import identity_pb2, identity_pb2_grpc

SECRET: Final = "remora-operator"
"""Metadata in which an operator shows the local secret."""

Context = grpc.aio.ServicerContext[Any, Any]


class IdentityService(identity_pb2_grpc.IdentityServicer):
    """Certificates for those who prove who they are; with no issuer, it says that there are none."""

    def __init__(self, issuer: Issuer | None, mirror: Mirror) -> None:
        self._issuer = issuer
        self._trust: identity_pb2.Trust | None = None
        self._changed = asyncio.Event()
        """Set, and replaced, when the trust changes: what else the store tells wakes none of those who follow."""
        mirror.on_change(self._on_state)
        self._on_state(mirror.state)

    def _on_state(self, state: State) -> None:
        if state.trust is not None and state.trust != self._trust:
            self._trust = state.trust
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _of_mesh(self) -> Issuer:
        if self._issuer is None:
            text = "this control plane runs without identities (--no-mtls)"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
        return self._issuer

    def _of_operator(self, context: Context) -> Issuer:
        """For what decides over the whole mesh. Raises Refused."""
        issuer = self._of_mesh()
        given = dict(context.invocation_metadata() or ()).get(SECRET, "")
        try:
            issuer.check_local_secret(given if isinstance(given, str) else given.decode("latin-1"))
        except NotProven:
            text = (
                "only an operator may do that: the user who runs the control plane, on the same machine, "
                "or who has its secret in REMORA_OPERATOR_SECRET"
            )
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, text) from None
        return issuer

    async def Issue(self, request: identity_pb2.IssueRequest, context: Context) -> identity_pb2.IssueResponse:
        request.namespace = request.namespace or DEFAULT_NAMESPACE
        issuer = self._of_mesh()
        try:
            issued, trust = await issuer.issue(request)
        except (BadRequest, NotProven, KeyringError) as error:
            _refuse(error)
        response = identity_pb2.IssueResponse(chain=issued.chain, trust=trust)
        response.renew_at.FromDatetime(issuing.renew_at(issued, datetime.now(issued.not_after.tzinfo)))
        response.not_after.FromDatetime(issued.not_after)
        return response

    async def Follow(self, request: identity_pb2.FollowRequest, context: Context) -> AsyncIterator[identity_pb2.Trust]:
        self._of_mesh()
        while True:
            changed = self._changed
            if self._trust is not None:
                yield self._trust
            await changed.wait()

    async def Confirm(self, request: identity_pb2.ConfirmRequest, context: Context) -> identity_pb2.ConfirmResponse:
        issuer = self._of_mesh()
        try:
            await issuer.confirm(request)
        except NotProven as error:
            _refuse(error)
        return identity_pb2.ConfirmResponse()

    async def CreateToken(
        self, request: identity_pb2.CreateTokenRequest, context: Context
    ) -> identity_pb2.CreateTokenResponse:
        issuer = self._of_operator(context)
        ttl_s = -(-request.ttl.ToNanoseconds() // 1_000_000_000) if request.HasField("ttl") else DEFAULT_TTL_S
        token, until = await issuer.create_token(request.namespace or DEFAULT_NAMESPACE, request.name, ttl_s)
        response = identity_pb2.CreateTokenResponse(token=token)
        response.expires_at.FromDatetime(until)
        return response

    async def Holders(self, request: identity_pb2.HoldersRequest, context: Context) -> identity_pb2.HoldersResponse:
        issuer = self._of_mesh()
        return identity_pb2.HoldersResponse(trust=await issuer.trust(), holders=await issuer.who_holds())

    async def Rotate(self, request: identity_pb2.RotateRequest, context: Context) -> identity_pb2.RotateResponse:
        issuer = self._of_operator(context)
        try:
            trust = await issuer.rotate(request.stage, force=request.force)
        except (NotNow, KeyringError) as error:
            _refuse(error)
        return identity_pb2.RotateResponse(trust=trust)


def _refuse(error: BadRequest | NotProven | NotNow | KeyringError) -> NoReturn:
    match error:
        case BadRequest():
            code = grpc.StatusCode.INVALID_ARGUMENT
        case NotProven():
            code = grpc.StatusCode.PERMISSION_DENIED
        case NotNow():
            code = grpc.StatusCode.FAILED_PRECONDITION
        case KeyringError():
            code = grpc.StatusCode.UNAVAILABLE
    raise Refused(code, str(error)) from None
