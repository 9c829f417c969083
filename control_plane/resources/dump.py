"""A resource as a user sees it: the Kubernetes shape."""

from typing import Any

from google.protobuf import json_format

from control_plane.resources import kinds
from proto.mesh.v1 import api_pb2


def to_dict(resource: api_pb2.Resource) -> dict[str, Any]:
    """`apiVersion`, `kind`, `metadata`, `spec` and, if there is one, `status`."""
    kind = kinds.of(resource)
    plain: dict[str, Any] = json_format.MessageToDict(resource)
    spelled = api_pb2.Resource.DESCRIPTOR.fields_by_name[kind.field].json_name
    metadata = plain.get("metadata", {})
    for counter in ("generation", "resourceVersion"):
        if counter in metadata:
            metadata[counter] = int(metadata[counter])
    for counter in ("number", "toRevision"):
        if counter in metadata.get("lastChange", {}):
            metadata["lastChange"][counter] = int(metadata["lastChange"][counter])
    shown: dict[str, Any] = {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": metadata,
        "spec": plain.get(spelled, {}),
    }
    for condition in plain.get("status", {}).get("conditions", ()):
        if "observedGeneration" in condition:
            condition["observedGeneration"] = int(condition["observedGeneration"])
    if plain.get("status"):
        shown["status"] = plain["status"]
    return shown
