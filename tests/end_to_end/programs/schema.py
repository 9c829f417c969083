"""Messages and stubs of echo.proto, made when a program starts: a program of a user has its own schema, and none of ours."""

import sys
from pathlib import Path
from typing import Any, Final

import grpc

_HERE: Final = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # where protoc looks

_made: Any = grpc.protos_and_services("echo.proto")
messages: Any = _made[0]
services: Any = _made[1]
SERVICE: Final = "echo.v1.Echo"
