"""The data plane."""

from sidecar import compiled

compiled.use()
