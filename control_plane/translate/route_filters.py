"""A filter of a route's rule as fields of Envoy's route."""

from collections.abc import Iterable
from math import gcd
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.type.v3 import percent_pb2

from control_plane.translate.view import cluster_name
from proto.mesh.v1 import route_pb2

_DENOMINATORS: Final = {
    100: percent_pb2.FractionalPercent.HUNDRED,
    10_000: percent_pb2.FractionalPercent.TEN_THOUSAND,
    1_000_000: percent_pb2.FractionalPercent.MILLION,
}


def apply_filter(given: route_pb2.RouteFilter, route: route_components_pb2.Route) -> None:
    """Have a route do what a filter says."""
    if given.HasField("request_header_modifier"):
        modifier = given.request_header_modifier
        route.request_headers_to_add.extend(_changes(modifier))
        route.request_headers_to_remove.extend(name.lower() for name in modifier.remove)
    elif given.HasField("response_header_modifier"):
        modifier = given.response_header_modifier
        route.response_headers_to_add.extend(_changes(modifier))
        route.response_headers_to_remove.extend(name.lower() for name in modifier.remove)
    elif given.HasField("request_mirror"):
        backend = given.request_mirror.backend_ref
        route.route.request_mirror_policies.add(
            cluster=cluster_name(backend.namespace, backend.name),
            runtime_fraction=base_pb2.RuntimeFractionalPercent(default_value=_share(given.request_mirror)),
        )


def _changes(modifier: route_pb2.HeaderModifier) -> Iterable[Any]:
    option = base_pb2.HeaderValueOption
    for values, action in (
        (modifier.set, option.OVERWRITE_IF_EXISTS_OR_ADD),
        (modifier.add, option.APPEND_IF_EXISTS_OR_ADD),
    ):
        for each in values:
            # A percent sign begins a command operator of Envoy; what users write means itself.
            value = base_pb2.HeaderValue(key=each.name.lower(), value=each.value.replace("%", "%%"))
            yield option(header=value, append_action=action)


def _share(mirror: route_pb2.RequestMirror) -> percent_pb2.FractionalPercent:
    if mirror.HasField("percent"):
        return percent_pb2.FractionalPercent(numerator=mirror.percent)
    if not mirror.HasField("fraction"):
        return percent_pb2.FractionalPercent(numerator=100)
    whole = mirror.fraction.denominator or 100
    step = gcd(mirror.fraction.numerator, whole) or 1
    numerator, whole = mirror.fraction.numerator // step, whole // step
    for size, name in _DENOMINATORS.items():
        if size % whole == 0:
            return percent_pb2.FractionalPercent(numerator=numerator * size // whole, denominator=name)
    # Envoy counts in millionths at the finest.
    return percent_pb2.FractionalPercent(
        numerator=round(numerator * 1_000_000 / whole), denominator=percent_pb2.FractionalPercent.MILLION
    )
