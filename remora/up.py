"""`remora up`: the control plane in the foreground."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import uvloop

from control_plane.api.server import CannotListen, running
from control_plane.identity import authority, spiffe
from control_plane.identity.issuer import Issuer, Settings
from control_plane.identity.keyring import Keyring, KeyringError
from control_plane.registry.sweeper import Retention
from control_plane.store import shown
from control_plane.store.contract import BadTarget, Store, StoreError
from remora import environment, exits, local_secret
from remora.addresses import UsageError, host_port


@dataclass(frozen=True, slots=True)
class Identities:
    """How the mesh's services prove who they are."""

    trust_domain: str
    directory: str | None
    """Where the authority's keys are; None is beside the embedded store, or in the user's state."""
    leaf_life_s: float
    ca: tuple[str, str] | None
    """Files: certificates, the authority's first and the root last, and its key; None makes a root."""


def default_store() -> str:
    """Where the embedded store is if nobody says otherwise."""
    return str(environment.state_directory() / "store")


@dataclass(frozen=True, slots=True)
class Replication:
    """What a replica needs to know beside its store."""

    advertise: str = ""
    """HOST:PORT where the others reach it; empty: where it listens."""
    keep_history_s: float = 3600.0


def run(
    listen: str,
    store: str | None,
    http: str,
    identities: Identities | None = None,
    replication: Replication | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Without `identities` calls are plain text. Raises UsageError."""
    replication = replication or Replication()
    if replication.advertise:
        host_port(replication.advertise, "--advertise")
    target = store or default_store()
    secret = local_secret.made() if identities is not None else ""
    issuing = _issuing(identities, target, secret) if identities is not None else None
    where = host_port(listen, "--listen"), host_port(http, "--http")
    return uvloop.run(_serve(*where, target, issuing, secret, replication))


def _issuing(identities: Identities, store: str, secret: str) -> Callable[[Store], Issuer]:
    """The authority, to be put on a store. Raises UsageError."""
    if not spiffe.is_trust_domain(identities.trust_domain):
        raise UsageError(
            f'--trust-domain: "{identities.trust_domain}" is none: lower-case letters, digits, dots, - and _ only'
        )
    if not 5 <= identities.leaf_life_s <= 86_400:
        raise UsageError("--certificate-life: from 5s to 24h")
    given = None
    if identities.ca is not None:
        try:
            chain, key = (Path(each).read_bytes() for each in identities.ca)
            given = authority.load(chain, key)
        except OSError as error:
            raise UsageError(f"--ca-cert, --ca-key: {error.filename}: {(error.strerror or '').lower()}") from None
        except authority.BadAuthority as error:
            raise UsageError(f"--ca-cert, --ca-key: {error}") from None
    is_embedded = "://" not in store
    directory = identities.directory or str(
        (Path(store) if is_embedded else environment.state_directory()) / "identity"
    )
    settings = Settings(identities.trust_domain, secret, given, timedelta(seconds=identities.leaf_life_s))
    return lambda opened: Issuer(opened, Keyring(Path(directory)), settings)


async def _serve(
    listen: tuple[str, int],
    http: tuple[str, int],
    store: str,
    issuing: Callable[[Store], Issuer] | None,
    secret: str,
    replication: Replication,
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        retention = Retention(age_s=replication.keep_history_s)
        plane_of = running(listen, store, http, issuing, advertise=replication.advertise, retention=retention)
        async with plane_of as plane, AsyncExitStack() as stack:
            if secret:
                stack.enter_context(local_secret.kept(secret, plane.port))
            print(
                f"remora control plane: xDS and API on {listen[0]}:{plane.port}, /metrics and /healthz on "
                f"{http[0]}:{plane.http_port}, store {shown(store)}",
                file=sys.stderr,
                flush=True,
            )
            await stop.wait()
    except CannotListen as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except KeyringError as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except BadTarget as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except StoreError as error:
        print(f"remora up: {error}", file=sys.stderr)
        return exits.UNREACHABLE
    return exits.DONE
