"""Three filters: one that adds headers, one that refuses calls, one that counts them."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sidecar.filtering import Answer, Filter, Request, Response

PERMISSION_DENIED = 7


class Stamp(Filter):
    """Adds a header to requests and responses: `{"name": "x-region", "value": "eu"}`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not config.get("name"):
            raise ValueError("name is missing")
        self._name, self._value = str(config["name"]), str(config.get("value", ""))

    def on_request(self, request: Request) -> None:
        request.headers.set(self._name, self._value)

    def on_response(self, request: Request, response: Response) -> None:
        response.headers.set(self._name, self._value)


class BlockAgents(Filter):
    """Refuses callers by their `user-agent`: `{"pattern": "curl|python-requests"}`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        try:
            self._pattern = re.compile(str(config["pattern"]), re.IGNORECASE)
        except (KeyError, re.error) as error:
            raise ValueError(f"pattern: {error}") from None

    def on_request(self, request: Request) -> Answer | None:
        agent = request.headers.get("user-agent")
        if self._pattern.search(agent):
            return Answer(PERMISSION_DENIED, f'callers with "{agent}" are not let in')
        return None


class CountTenants(Filter):
    """Counts calls and failures by the header `x-tenant`, the `most` largest tenants at most, and tells a tenant its number."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._most = int(config.get("most", 1000))
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def on_request(self, request: Request) -> None:
        tenant = request.headers.get("x-tenant", "none")
        if tenant not in self.calls and len(self.calls) >= self._most:
            tenant = "others"
        self.calls[tenant] += 1
        request.notes["tenant"] = tenant

    def on_response(self, request: Request, response: Response) -> None:
        response.headers.set("x-tenant-calls", str(self.calls[request.notes["tenant"]]))

    def on_end(self, request: Request, status: int) -> None:
        if status:
            self.failures[request.notes["tenant"]] += 1
