"""CSDS: what each connected node was sent, and what it said of it (envoy.service.status.v3.ClientStatusDiscoveryService).

As of a management server: `config_status` says how far each resource got; `client_status` the same in the words that xDS clients use of
themselves, so that readers of either find it. Of this replica's nodes only.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from time import monotonic, time
from typing import Any, Final

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc

from control_plane.ads.core import NodeStream
from control_plane.ads.service import AdsService
from control_plane.ads.subscription import Subscription
from control_plane.api.matching import Matcher
from control_plane.api.refused import Refused
from control_plane.resources import rules, unknown
from control_plane.translate.snapshot import ORDER

MAX_BYTES: Final = 4_000_000
"""Of one answer: as much as gRPC's clients take unless they are told otherwise."""
MAX_AT_ONCE: Final = 8
"""Answers that are being put together."""
MATCHING_S: Final = 1.0
"""Longest time that the matchers of one request may take."""
_TURN_S: Final = 0.01
"""Others get their turn after so long."""
SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"

Context = grpc.aio.ServicerContext[Any, Any]
_Config = csds_pb2.ClientConfig.GenericXdsConfig
_Client = config_dump_shared_pb2.ClientResourceStatus


class ClientStatus(csds_pb2_grpc.ClientStatusDiscoveryServiceServicer):  # type: ignore[misc]
    """The service; an answer is of one moment per node."""

    def __init__(self, ads: AdsService) -> None:
        self._ads = ads
        self._under_way = 0

    async def FetchClientStatus(self, request: Any, context: Context) -> Any:
        return await self._answer(request)

    async def StreamClientStatus(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._answer(request)

    async def _answer(self, request: Any) -> Any:
        """Raises Refused."""
        for fault in (*unknown.faults(request), *rules.faults(request)):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(fault))
        matcher = Matcher(request.node_matchers)
        if self._under_way >= MAX_AT_ONCE:
            text = f"{self._under_way} answers are put together already; at most {MAX_AT_ONCE} may; try again"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._under_way += 1
        try:
            return await self._collected(matcher, has_contents=not request.exclude_resource_contents)
        finally:
            self._under_way -= 1

    async def _collected(self, matcher: Matcher, *, has_contents: bool) -> Any:
        response = csds_pb2.ClientStatusResponse()
        size, matching_s, turn_from = 0, 0.0, monotonic()
        for stream in sorted(self._ads.streams.values(), key=lambda stream: stream.node.id):
            start = monotonic()
            node = base_pb2.Node.FromString(stream.node.said)
            is_meant = matcher.matches(node)
            matching_s += monotonic() - start
            if matching_s > MATCHING_S:
                text = f"the matchers take longer than {MATCHING_S:g} s over all nodes; write simpler ones"
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            if is_meant:
                config = csds_pb2.ClientConfig(node=node)
                size += config.ByteSize()
                for each in resources(stream, has_contents=has_contents):
                    size += each.ByteSize()
                    if size > MAX_BYTES:
                        way_out = "exclude_resource_contents, or node_matchers" if has_contents else "node_matchers"
                        text = f"more than {MAX_BYTES} bytes, too many for one answer; ask for less with {way_out}"
                        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
                    config.generic_xds_configs.append(each)
                response.config.append(config)
            if monotonic() - turn_from > _TURN_S:
                await asyncio.sleep(0)
                turn_from = monotonic()
        return response


def resources(stream: NodeStream, *, has_contents: bool) -> Iterator[Any]:
    """A `GenericXdsConfig` for each resource that a node was sent or asks for, in the order of the types."""
    for url in ORDER:
        subscription = stream.subscriptions.get(url)
        if subscription is None:
            continue
        for name in sorted(subscription.sent):
            config = _sent(subscription, name)
            if has_contents:
                config.xds_config.type_url = url
                config.xds_config.value = subscription.sent[name]
            yield config
        for name in sorted((subscription.asked or frozenset()) - subscription.sent.keys()):
            is_known = bool(subscription.version_sent) and subscription.is_answered
            yield _Config(
                type_url=url,
                name=name,
                config_status=csds_pb2.NOT_SENT,
                client_status=_Client.DOES_NOT_EXIST if is_known else _Client.REQUESTED,
            )


def _sent(subscription: Subscription, name: str) -> Any:
    config = _Config(type_url=subscription.type_url, name=name, version_info=subscription.version_sent)
    sent_at = time() - (monotonic() - subscription.sent_at)
    config.last_updated.FromNanoseconds(int(sent_at * 1e9))
    if name in subscription.refused:
        config.config_status, config.client_status = csds_pb2.ERROR, _Client.NACKED
        config.error_state.details = subscription.nack_reason
        config.error_state.version_info = subscription.version_nacked
        config.error_state.last_update_attempt.CopyFrom(config.last_updated)
    elif not subscription.is_answered and name in subscription.under_way:
        config.config_status, config.client_status = csds_pb2.STALE, _Client.REQUESTED
    else:
        config.config_status, config.client_status = csds_pb2.SYNCED, _Client.ACKED
    return config
