"""The filters by themselves: no proxy, no network."""

import pytest
from example_filters import BlockAgents, CountTenants, Stamp

from sidecar.filtering import Headers, Request, Response


def test_the_header_is_put_on_requests_and_responses() -> None:
    stamp = Stamp({"name": "x-region", "value": "eu"})
    request, response = Request(headers=Headers({"x-region": "forged"})), Response()
    stamp.on_request(request)
    stamp.on_response(request, response)
    assert list(request.headers) == list(response.headers) == [("x-region", "eu")]


def test_a_stamp_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name is missing"):
        Stamp({})


@pytest.mark.parametrize(("agent", "is_blocked"), [("curl/8.1", True), ("grpc-python/1.85", False), ("", False)])
def test_agents_are_blocked_by_pattern(agent: str, is_blocked: bool) -> None:
    answer = BlockAgents({"pattern": "CURL"}).on_request(Request(headers=Headers({"user-agent": agent})))
    assert (answer is not None) is is_blocked
    assert answer is None or (answer.status, answer.message) == (7, 'callers with "curl/8.1" are not let in')


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern: "):
        BlockAgents({"pattern": "("})


def test_calls_are_counted_by_tenant_within_a_bound() -> None:
    count = CountTenants({"most": 1})
    for tenant, status in (("ann", 0), ("ann", 14), ("bob", 13)):
        request = Request(headers=Headers({"X-Tenant": tenant}))
        count.on_request(request)
        count.on_end(request, status)
    assert count.calls == {"ann": 2, "others": 1}
    assert count.failures == {"ann": 1, "others": 1}
