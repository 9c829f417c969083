"""The environment of our own process, and the one that programs inherit from us: as the user set it."""

import os
from pathlib import Path
from typing import Final

_OURS: Final = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""gRPC's core tells of every fork, and of every port that is taken, on standard error; what matters of it we say ourselves. What it does at a
fork, for children that go on speaking gRPC, kills one child in a hundred before it becomes its program, if calls are under way; ours always do."""
_set: list[str] = []
JOIN_TOKEN: Final = "REMORA_JOIN_TOKEN"
OPERATOR_SECRET: Final = "REMORA_OPERATOR_SECRET"


def state_directory() -> Path:
    """Where what outlives a process is kept."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "remora"


def prepare() -> None:
    """Set what our own use of gRPC needs; before gRPC is imported."""
    for name, value in _OURS.items():
        if name not in os.environ:
            os.environ[name] = value
            _set.append(name)


def inherited() -> dict[str, str]:
    """What a program that we start is to get: not what we set, and not what proves to the control plane who we are."""
    return {name: value for name, value in os.environ.items() if name not in (*_set, JOIN_TOKEN, OPERATOR_SECRET)}
