"""What `get` prints is what `apply` takes."""

import json

from hypothesis import given, settings

from control_plane.resources.dump import to_dict
from control_plane.resources.load import load
from proto.mesh.v1 import api_pb2, meta_pb2
from remora.output import to_yaml
from tests.control_plane import strategies


@settings(max_examples=60, deadline=None)
@given(strategies.resources())
def test_a_resource_survives_yaml_and_json(resource: api_pb2.Resource) -> None:
    assert load(to_yaml(to_dict(resource)), "f") == [resource]
    assert load(json.dumps(to_dict(resource)), "f") == [resource]


def test_a_resource_is_shown_in_the_kubernetes_shape() -> None:
    text = """\
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: limit, namespace: shop}
spec:
  targetRefs: [{name: orders}]
  mode: Shadow
  requests: 10
  interval: 1500ms
"""
    (resource,) = load(text, "f")
    resource.metadata.generation = 3
    resource.metadata.resource_version = 12345678901234567
    resource.metadata.creation_timestamp.FromJsonString("2026-01-31T12:00:00Z")
    resource.status.conditions.append(meta_pb2.Condition(type="Accepted", status="True", reason="Accepted"))
    assert to_dict(resource) == {
        "apiVersion": "remora.dev/v1",
        "kind": "RateLimitPolicy",
        "metadata": {
            "name": "limit",
            "namespace": "shop",
            "generation": 3,
            "resourceVersion": 12345678901234567,
            "creationTimestamp": "2026-01-31T12:00:00Z",
        },
        "spec": {"targetRefs": [{"name": "orders"}], "mode": "Shadow", "requests": 10, "interval": "1.500s"},
        "status": {"conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted"}]},
    }


def test_a_kind_that_is_empty_is_shown_with_an_empty_spec() -> None:
    (resource,) = load("apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: orders}\nspec:\n", "f")
    assert to_dict(resource)["spec"] == {}
