"""Who counts when several decide the same: the Gateway API's rule for conflicts."""

from control_plane.resources import precedence
from proto.mesh.v1 import api_pb2, meta_pb2


def resource(name: str, namespace: str = "", seconds: int = 0) -> api_pb2.Resource:
    made = api_pb2.Resource(metadata=meta_pb2.Metadata(name=name, namespace=namespace))
    made.metadata.creation_timestamp.FromSeconds(seconds)
    return made


def order(*resources: api_pb2.Resource) -> list[str]:
    return [f"{item.metadata.namespace}/{item.metadata.name}" for item in precedence.order(resources)]


def test_the_oldest_counts() -> None:
    assert order(resource("a", "shop", 2), resource("b", "shop", 1)) == ["shop/b", "shop/a"]


def test_of_the_same_age_the_first_in_the_alphabet_of_namespace_slash_name_counts() -> None:
    assert order(resource("b", "shop"), resource("a", "shop")) == ["shop/a", "shop/b"]
    # "a-b/x" comes before "a/x", since "-" comes before "/".
    assert order(resource("x", "a"), resource("x", "a-b")) == ["a-b/x", "a/x"]


def test_no_namespace_is_default() -> None:
    assert order(resource("b", "default"), resource("a")) == ["/a", "default/b"]
