"""The commands, by what they are about; each module adds its own to `app`.

grpc, asyncio and the like are imported inside the commands that need them: `remora --help` should not wait for them.
"""

from remora.commands import edges, explain, identities, instances, kubernetes, mesh, processes, resources, route, tx
from remora.commands.app import app

__all__ = [
    "app",
    "edges",
    "explain",
    "identities",
    "instances",
    "kubernetes",
    "mesh",
    "processes",
    "resources",
    "route",
    "tx",
]
