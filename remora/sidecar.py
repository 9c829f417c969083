"""`remora sidecar`: the data plane, and nothing else, so that it starts fast and stays small."""

from sidecar.run import main

__all__ = ["main"]
