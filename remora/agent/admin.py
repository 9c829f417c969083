"""Questions to a data plane's admin endpoint: the few that Envoy and our sidecar answer alike."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Final

TIMEOUT_S: Final = 2.0


def _fetch(url: str, method: str, timeout_s: float, body: bytes | None) -> tuple[int, str]:
    request = urllib.request.Request(url, body, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError):
        return 0, ""


async def ask(
    address: tuple[str, int], path: str, method: str = "GET", timeout_s: float = TIMEOUT_S, body: bytes | None = None
) -> tuple[int, str]:
    """HTTP status and body; status 0 if there was no answer."""
    url = f"http://{address[0]}:{address[1]}{path}"
    return await asyncio.to_thread(_fetch, url, method, timeout_s, body)


async def snapshot_age(address: tuple[str, int]) -> float | None:
    """Seconds since the configuration was known to be current, if it is the one that our sidecar kept on disk; else None."""
    status, text = await ask(address, "/snapshot")
    kept = json.loads(text) if status == 200 else {}
    return float(kept["ageS"]) if kept.get("isInForce") else None


async def is_ready(address: tuple[str, int]) -> bool:
    """True once the data plane has its first configuration and listens."""
    return (await ask(address, "/ready"))[0] == 200
