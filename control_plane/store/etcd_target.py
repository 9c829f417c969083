"""What `etcd://…` says: endpoints, TLS, user. Pure but for reading the files that it names.

    etcd://HOST:PORT[,HOST:PORT…]
    etcd://USER[:PASSWORD]@HOST:PORT,…?ca=FILE&cert=FILE&key=FILE&server-name=NAME

User and password are percent-encoded. REMORA_ETCD_USER and REMORA_ETCD_PASSWORD stand in for what the target does not say, so that
a password need not show in a list of processes. `ca` turns TLS on; `cert` and `key` are the client's own; `server-name` is the name
that the members' certificates are checked for, if it is not the host that is dialled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote

from control_plane.store.contract import BadTarget

SCHEME: Final = "etcd://"
USER: Final = "REMORA_ETCD_USER"
PASSWORD: Final = "REMORA_ETCD_PASSWORD"
OPTIONS: Final = ("ca", "cert", "key", "server-name")


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM, as read."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster and how to be let in."""

    endpoints: tuple[str, ...]
    """HOST:PORT each."""
    user: str = ""
    password: str = field(default="", repr=False)
    tls: Tls | None = None

    def __str__(self) -> str:
        return f"etcd {','.join(self.endpoints)}"


def parse(text: str, environment: Mapping[str, str]) -> Target:
    """Raises BadTarget with a sentence that names what is wrong."""
    rest, _, query = text.removeprefix(SCHEME).partition("?")
    user_info, _, hosts = rest.rpartition("@")
    endpoints = tuple(_endpoint(host) for host in hosts.rstrip("/").split(","))
    if len(set(endpoints)) != len(endpoints):
        raise BadTarget("etcd: one endpoint stands twice in the target")
    user, _, password = user_info.partition(":")
    user = unquote(user) or environment.get(USER, "")
    password = unquote(password) or environment.get(PASSWORD, "")
    if user and not password:
        raise BadTarget(f"etcd: user {user} has no password; set {PASSWORD}")
    if password and not user:
        raise BadTarget(f"etcd: a password without a user; set {USER}")
    return Target(endpoints, user, password, _tls(query))


def _endpoint(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadTarget(f"etcd: {text!r} is not HOST:PORT; write etcd://HOST:PORT,HOST:PORT")
    if (":" in host and not (host.startswith("[") and host.endswith("]"))) or any(c in host for c in "/?#@ "):
        raise BadTarget(f"etcd: {text!r} is not HOST:PORT; an IPv6 address stands in brackets")
    return f"{host}:{int(port)}"


def _tls(query: str) -> Tls | None:
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    for name, value in pairs:
        if name not in OPTIONS:
            raise BadTarget(f"etcd: unknown option {name!r}; known are {', '.join(OPTIONS)}")
        if not value:
            raise BadTarget(f"etcd: option {name!r} is empty")
    if len(given) != len(pairs):
        raise BadTarget("etcd: one option stands twice in the target")
    if not given:
        return None
    if "ca" not in given:
        raise BadTarget(f"etcd: option {next(iter(given))!r} needs 'ca', the file with the authority's certificate")
    if ("cert" in given) != ("key" in given):
        raise BadTarget("etcd: options 'cert' and 'key' come together")
    files = {name: _read(name, given[name]) for name in ("ca", "cert", "key") if name in given}
    return Tls(files["ca"], files.get("cert"), files.get("key"), given.get("server-name", ""))


def _read(name: str, path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadTarget(f"etcd: option {name!r}: {path}: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise BadTarget(f"etcd: option {name!r}: {path} is not a PEM file")
    return content
