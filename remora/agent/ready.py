"""Is the data plane beside us ready? For probes: it imports next to nothing, and asks once."""

import http.client

from remora import exits

TIMEOUT_S = 4.0


def ready(host: str, port: int) -> int:
    """An exit code: done if the data plane has its first configuration and listens; else no."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return exits.DONE if connection.getresponse().status == 200 else exits.NO
    except (OSError, http.client.HTTPException):
        return exits.NO
    finally:
        connection.close()
