"""remora.mesh.v1.PythonFilter to the proxy's configuration."""

import json
from typing import Any

from google.protobuf import json_format

from proto.mesh.v1 import filters_pb2
from sidecar.filtering import FilterError, load
from sidecar.proxy.config import PythonFilter
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import seconds_or


def python_filter(message: Any, path: str) -> PythonFilter:
    """A filter in plain Python; one that cannot be made is refused here, and not when calls come. Raises ConfigError."""
    settings = json_format.MessageToDict(message.config)
    base = PythonFilter("")
    found = PythonFilter(
        message.filter,
        json.dumps(settings, sort_keys=True),
        message.on_error == filters_pb2.PythonFilter.Closed,
        seconds_or(message, "budget", base.budget_s),
        message.max_overruns or base.max_overruns,
        seconds_or(message, "off", base.off_s),
    )
    if found.budget_s <= 0.0 or found.off_s <= 0.0:
        raise ConfigError(path, "budget and off must be above 0 (RMR0150)")
    try:
        load(found.name, settings)
    except FilterError as error:
        raise ConfigError(f"{path}.filter", f"{error} (RMR0150)") from None
    return found
