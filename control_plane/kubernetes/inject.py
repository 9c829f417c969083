"""A sidecar beside the containers of a pod that nobody wrote one for; and away with it again. Pure: documents in, documents out.

The sidecar is a native one (an init container with `restartPolicy: Always`): it is ready before any other container starts, those that
initialise included, stops after the last of them, and keeps no Job from ending. Programs reach it by `grpc_proxy`, which gRPC's C-core
reads (Python, C++, Ruby, PHP, C#): that needs no right at all, so the pod stays within Pod Security `restricted`. Nothing comes between
kubelet and program, so probes are left as they are.

What was done stands in the annotation `remora.dev/injected`: by it a second time is the same as once, and `uninject` takes away what was
added and nothing else.
"""

import copy
import json
import re
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

Document = MutableMapping[str, Any]

PREFIX: Final = "remora.dev/"
INJECT: Final = f"{PREFIX}inject"
"""`enabled` or `disabled`; on a pod's template, or as the label of a namespace."""
SERVICE: Final = f"{PREFIX}service"
VERSION: Final = f"{PREFIX}version"
PORT: Final = f"{PREFIX}port"
CPU: Final = f"{PREFIX}sidecar-cpu"
MEMORY: Final = f"{PREFIX}sidecar-memory"
INJECTED: Final = f"{PREFIX}injected"
ANNOTATIONS: Final = (INJECT, SERVICE, VERSION, PORT, CPU, MEMORY, INJECTED)
SIDECAR: Final = "remora-sidecar"
STATE: Final = "remora-state"
STATE_PATH: Final = "/var/lib/remora"
INBOUND, OUTBOUND, ADMIN = 15006, 15001, 15000
USER: Final = 65532
_FORMAT: Final = 1
_LEFT_ALONE: Final = ("kube-system", "kube-public", "kube-node-lease", "remora-system")
_TEMPLATES: Final = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
"""By kind, where the pod is."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9._+-]{0,63}")
_BYPASS: Final = "no_grpc_proxy"


class CannotInject(Exception):
    """The document cannot get a sidecar; the text says which field and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all pods get alike."""

    server: str
    """HOST:PORT of the control plane."""
    image: str
    namespace: str = ""
    """Of documents that name none; empty: whatever namespace the pod comes to run in."""


@dataclass(slots=True)
class Outcome:
    """A document, and what was done to it, a line for each thing."""

    document: Document
    said: list[str] = field(default_factory=list)
    is_changed: bool = False


def inject(document: Document, settings: Settings) -> Outcome:
    """A copy with a sidecar in every pod that wants one. Raises CannotInject."""
    outcome = Outcome(copy.deepcopy(document))
    for owner in _single(outcome.document):
        _inject(owner, settings, outcome)
    return outcome


def uninject(document: Document) -> Outcome:
    """A copy without what `inject` added. Raises CannotInject."""
    outcome = Outcome(copy.deepcopy(document))
    for owner in _single(outcome.document):
        pod = _pod(owner)
        if pod is not None and _take_away(owner, pod):
            outcome.is_changed = True
            outcome.said.append(f"{_shown(owner)}: the sidecar and what belongs to it is taken away")
    return outcome


def _single(document: Document) -> Iterator[Document]:
    """A document, or those of a `List`."""
    if document.get("kind") == "List":
        for item in document.get("items") or ():
            yield from _single(item)
    else:
        yield document


def _pod(owner: Document) -> Document | None:
    """The pod, or the template of pods, in an object; None if it has none."""
    path = _TEMPLATES.get(str(owner.get("kind")))
    if path is None:
        return None
    found: Any = owner
    for name in path:
        found = found.get(name) if isinstance(found, MutableMapping) else None
    if not isinstance(found, MutableMapping) or not isinstance(found.get("spec"), MutableMapping):
        raise CannotInject(f"{_shown(owner)}: has no {'.'.join((*path, 'spec'))}")
    return found


def _inject(owner: Document, settings: Settings, outcome: Outcome) -> None:
    pod = _pod(owner)
    if pod is None:
        return
    shown, was_there = _shown(owner), _take_away(owner, pod)
    why_not = _why_not(owner, pod)
    if why_not:
        outcome.is_changed |= was_there
        outcome.said.append(f"{shown}: no sidecar: {why_not}")
        return
    service, port = _service(owner, pod), _port(owner, pod)
    namespace = _namespace(owner) or settings.namespace or "$(POD_NAMESPACE)"
    _refuse_conflicts(owner, pod)
    spec = pod["spec"]
    done: dict[str, Any] = {"format": _FORMAT, "env": {}}
    say = outcome.said.append
    say(f"{shown}: {'again, ' if was_there else ''}as {service}.{namespace}, {_port_words(port)}")
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        added = _point_at_sidecar(container)
        if added:
            done["env"][container["name"]] = added
            say(f"{shown}: container {container['name']}: {', '.join(added)} set")
        else:
            say(f"{shown}: container {container['name']}: sets grpc_proxy itself, so it is left alone")
    sidecar = _sidecar(pod, settings, service, namespace, port)
    if "initContainers" not in spec:
        spec["initContainers"] = []
        done["initContainers"] = True
    spec["initContainers"].insert(0, sidecar)
    if "volumes" not in spec:
        spec["volumes"] = []
        done["volumes"] = True
    spec["volumes"].append({"name": STATE, "emptyDir": {"sizeLimit": "16Mi"}})
    say(f"{shown}: {SIDECAR}: {settings.image}, ready before, and stopped after, every other container")
    metadata = pod.setdefault("metadata", {})
    if "annotations" not in metadata:
        done["annotations"] = True
    metadata.setdefault("annotations", {})[INJECTED] = json.dumps(done, separators=(",", ":"))
    outcome.is_changed = True


def _why_not(owner: Document, pod: Document) -> str:
    """Why a pod does not get a sidecar; empty if it does."""
    annotations = _annotations(pod)
    for name in annotations:
        if name.startswith(PREFIX) and name not in ANNOTATIONS:
            raise CannotInject(f"{_shown(owner)}: annotation {name} is not known; known: {', '.join(ANNOTATIONS[:-1])}")
    wanted = annotations.get(INJECT, "enabled")
    if wanted not in ("enabled", "disabled"):
        raise CannotInject(f'{_shown(owner)}: annotation {INJECT}: "{wanted}" is not known; write enabled or disabled')
    if wanted == "disabled":
        return f"annotation {INJECT} says disabled"
    if _namespace(owner) in _LEFT_ALONE:
        return f"namespace {_namespace(owner)} is left alone"
    if pod["spec"].get("hostNetwork"):
        return "the pod has its node's network, where sidecars would meet"
    return ""


def _annotations(pod: Document) -> Document:
    found: Document = (pod.get("metadata") or {}).get("annotations") or {}
    return found


def _namespace(owner: Document) -> str:
    return str((owner.get("metadata") or {}).get("namespace") or "")


def _shown(owner: Document) -> str:
    metadata = owner.get("metadata") or {}
    return f"{owner.get('kind')} {metadata.get('name') or metadata.get('generateName') or 'without a name'}"


def _service(owner: Document, pod: Document) -> str:
    """The service that a pod is part of: what it says, or the name of what runs it."""
    metadata = owner.get("metadata") or {}
    name = str(_annotations(pod).get(SERVICE) or metadata.get("name") or "")
    if not _NAME.fullmatch(name):
        raise CannotInject(
            f'{_shown(owner)}: "{name}" is no name of a service; say one by annotation {SERVICE} of the pod'
        )
    return name


def _port(owner: Document, pod: Document) -> int:
    """The port that the program listens on; 0 if it has none."""
    said = _annotations(pod).get(PORT)
    if said is not None:
        if not str(said).isascii() or not str(said).isdigit() or not 0 < int(said) < 65536:
            raise CannotInject(f'{_shown(owner)}: annotation {PORT}: "{said}" is no port, 1 to 65535')
        return int(said)
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    of_grpc = [port for port in ports if str(port.get("name", "")).startswith("grpc")] or ports
    if len(of_grpc) > 1:
        listed = ", ".join(str(port["containerPort"]) for port in of_grpc)
        raise CannotInject(
            f"{_shown(owner)}: ports {listed}: say by annotation {PORT} which one is gRPC's, or name it grpc"
        )
    return int(of_grpc[0]["containerPort"]) if of_grpc else 0


def _port_words(port: int) -> str:
    if port:
        return f"calls come in by port {INBOUND} and go to the program's {port}"
    return f"no port is declared, so it takes no calls (annotation {PORT} says one)"


def _refuse_conflicts(owner: Document, pod: Document) -> None:
    spec = pod["spec"]
    if not spec.get("containers"):
        raise CannotInject(f"{_shown(owner)}: spec.containers is empty")
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        if container.get("name") == SIDECAR:
            raise CannotInject(f"{_shown(owner)}: a container {SIDECAR} is there that was not injected; take it out")
        for port in container.get("ports") or ():
            if port.get("containerPort") in (INBOUND, OUTBOUND, ADMIN):
                taken = port["containerPort"]
                raise CannotInject(
                    f"{_shown(owner)}: container {container['name']}: port {taken} is the sidecar's; choose another"
                )
    if any(volume.get("name") == STATE for volume in spec.get("volumes") or ()):
        raise CannotInject(f"{_shown(owner)}: a volume {STATE} is there that was not injected; give it another name")


def _point_at_sidecar(container: Document) -> list[str]:
    """Let a container's gRPC library go by the sidecar; the names of variables that were set."""
    known = {variable["name"] for variable in container.get("env") or ()}
    if "grpc_proxy" in known:
        return []
    wanted = {"grpc_proxy": f"http://127.0.0.1:{OUTBOUND}", _BYPASS: "localhost,127.0.0.1,::1"}
    added = [name for name in wanted if name not in known]
    if container.get("env") is None:
        container["env"] = []
    container["env"].extend({"name": name, "value": wanted[name]} for name in added)
    return added


def _sidecar(pod: Document, settings: Settings, service: str, namespace: str, port: int) -> Document:
    annotations, labels = _annotations(pod), (pod.get("metadata") or {}).get("labels") or {}
    version = str(annotations.get(VERSION) or labels.get("app.kubernetes.io/version") or labels.get("version") or "")
    if not _LABEL_VALUE.fullmatch(version):
        raise CannotInject(f'"{version}" is no version; say one by annotation {VERSION} of the pod')
    memory = str(annotations.get(MEMORY) or "")
    return {
        "name": SIDECAR,
        "image": settings.image,
        "restartPolicy": "Always",
        "args": [
            "sidecar",
            f"--service={service}.{namespace}",
            *([f"--version={version}"] if version else []),
            f"--node={service}.{namespace}~$(POD_NAME)",
            f"--server={settings.server}",
            f"--inbound=0.0.0.0:{INBOUND if port else 0}",
            f"--app=127.0.0.1:{port}",
            f"--outbound=127.0.0.1:{OUTBOUND}",
            f"--admin=127.0.0.1:{ADMIN}",
            f"--snapshot={STATE_PATH}/snapshot",
        ],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "TMPDIR", "value": STATE_PATH},
        ],
        **({"ports": [{"name": "remora-inbound", "containerPort": INBOUND}]} if port else {}),
        # Started: the first complete configuration is in force.
        "startupProbe": {
            "exec": {"command": ["remora", "ready", "--admin", f"127.0.0.1:{ADMIN}"]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 120,
        },
        "resources": {
            "requests": {"cpu": str(annotations.get(CPU) or "50m"), "memory": memory or "64Mi"},
            "limits": {"memory": memory or "256Mi"},
        },
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": STATE, "mountPath": STATE_PATH}],
    }


def _take_away(owner: Document, pod: Document) -> bool:
    """Undo what the annotation tells of; False if there is none."""
    text = _annotations(pod).get(INJECTED)
    if text is None:
        return False
    try:
        done = json.loads(text)
        is_ours = done["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise CannotInject(
            f"{_shown(owner)}: annotation {INJECTED} is not of this release; undo by the one that wrote it"
        )
    spec, metadata = pod["spec"], pod["metadata"]
    for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
        names = done["env"].get(container["name"], ())
        kept = [variable for variable in container.get("env") or () if variable["name"] not in names]
        if names and kept:
            container["env"] = kept
        elif names:
            container.pop("env", None)
    for part, name in (("initContainers", SIDECAR), ("volumes", STATE)):
        items = spec.get(part) or []
        items[:] = [item for item in items if item.get("name") != name]
        if done.get(part) and not items:
            spec.pop(part, None)
    del metadata["annotations"][INJECTED]
    if done.get("annotations") and not metadata["annotations"]:
        del metadata["annotations"]
    return True
