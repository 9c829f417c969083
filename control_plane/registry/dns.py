"""Addresses of a DNS name and how long they hold (RFC 1035): messages as pure functions, and a resolver over UDP and TCP.

The operating system's own resolver tells no TTLs, so the name servers that it is configured with are asked directly. What only it
knows (`/etc/hosts`, say) is asked of it when they know nothing, and holds for `SYSTEM_TTL_S`.
"""

import asyncio
import ipaddress
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 3600.0
SYSTEM_TTL_S: Final = 30.0
MAX_ADDRESSES: Final = 64
"""Of one name; further ones are left out."""
TIMEOUT_S: Final = 2.0
ATTEMPTS: Final = 2
"""Of each server."""
MAX_SERVERS: Final = 3
_A, _AAAA, _CNAME, _IN = 1, 28, 5, 1
_MAX_HOPS: Final = 64
"""Compression pointers that one name may follow, and aliases that an answer may go through."""
_RESOLV_CONF: Final = Path("/etc/resolv.conf")

Server = tuple[str, int]


class NotResolved(Exception):
    """A name has no address, or nobody says; the text says why."""


class Malformed(Exception):
    """Bytes that are no answer to what was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Addresses in order, and seconds that they hold."""

    addresses: tuple[str, ...]
    ttl_s: float


# -- messages -------------------------------------------------------------------------------------------


def query(number: int, name: str, kind: int) -> bytes:
    """A question. Raises NotResolved for what is no name of a host."""
    try:
        labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    except UnicodeEncodeError:
        raise NotResolved(f"{name} is no name of a host") from None
    if any(not 0 < len(label) < 64 for label in labels) or sum(map(len, labels)) + len(labels) > 253:
        raise NotResolved(f"{name} is no name of a host")
    question = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", kind, _IN)


def is_truncated(data: bytes) -> bool:
    """True if the rest of an answer must be asked for by TCP."""
    return len(data) > 2 and bool(data[2] & 0x02)


def answer(data: bytes, number: int, name: str, kind: int) -> Answer:
    """What a response says; no addresses if there are none. Raises Malformed, NotResolved."""
    try:
        return _answer(data, number, name.rstrip(".").lower(), kind)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise Malformed("an answer that breaks off") from None


def _answer(data: bytes, number: int, name: str, kind: int) -> Answer:
    given, flags, questions, answers, _, _ = struct.unpack_from("!6H", data)
    if given != number or not flags & 0x8000 or questions != 1:
        raise Malformed("an answer to another question")
    asked, place = _name(data, 12)
    if asked != name or struct.unpack_from("!2H", data, place) != (kind, _IN):
        raise Malformed("an answer to another question")
    if flags & 0x000F == 3:
        raise NotResolved(f"there is no name {name}")
    if flags & 0x000F:
        raise Malformed(f"the server answers with code {flags & 0x000F}")
    place += 4
    aliases: dict[str, tuple[str, int]] = {}
    found: dict[str, list[tuple[str, int]]] = {}
    for _ in range(answers):
        owner, place = _name(data, place)
        of, group, ttl, length = struct.unpack_from("!HHIH", data, place)
        place += 10
        value = data[place : place + length]
        if len(value) < length:
            raise Malformed("an answer that breaks off")
        if group == _IN and of == _CNAME:
            aliases[owner] = _name(data, place)[0], ttl
        elif group == _IN and of == kind and length == (4 if kind == _A else 16):
            found.setdefault(owner, []).append((str(ipaddress.ip_address(value)), ttl))
        place += length
    ttls: list[int] = []
    for _ in range(_MAX_HOPS):
        if name in found or name not in aliases:
            break
        name, ttl = aliases[name]
        ttls.append(ttl)
    records = found.get(name, [])
    ttls += [ttl for _, ttl in records]
    return Answer(tuple(dict.fromkeys(address for address, _ in records)), float(min(ttls, default=0)))


def _name(data: bytes, place: int) -> tuple[str, int]:
    """A name in lower case, and where it ends (RFC 1035 §4.1.4)."""
    labels: list[str] = []
    end = -1
    for _ in range(_MAX_HOPS * 2):
        length = data[place]
        if length & 0xC0 == 0xC0:
            if end < 0:
                end = place + 2
            place = struct.unpack_from("!H", data, place)[0] & 0x3FFF
        elif length & 0xC0:
            raise Malformed("a label of an unknown kind")
        elif not length:
            return ".".join(labels).lower(), end if end >= 0 else place + 1
        else:
            labels.append(data[place + 1 : place + 1 + length].decode("ascii"))
            place += 1 + length
    raise Malformed("a name without an end")


# -- asking ---------------------------------------------------------------------------------------------


def servers(text: str) -> list[Server]:
    """The name servers of a resolv.conf."""
    words = [line.split() for line in text.splitlines()]
    return [(each[1], 53) for each in words if len(each) > 1 and each[0] == "nameserver"][:MAX_SERVERS]


def configured() -> list[Server]:
    """The name servers of this machine."""
    try:
        return servers(_RESOLV_CONF.read_text())
    except OSError:
        return []


class Resolver:
    """Asks name servers; `None` are those that this machine is configured with, at each question."""

    def __init__(self, servers: list[Server] | None = None) -> None:
        self._servers = servers

    async def resolve(self, name: str) -> Answer:
        """The IPv4 addresses of a name, and the IPv6 ones if it has none. Raises NotResolved."""
        why = "no name server is configured"
        if (
            name.rstrip(".").lower().rpartition(".")[2] == "localhost"
        ):  # which no name server is to be asked for (RFC 6761)
            return await _of_system(name, why)
        for server in self._servers if self._servers is not None else configured():
            for _ in range(ATTEMPTS):
                try:
                    return await self._ask(server, name)
                except NotResolved as error:
                    why = str(error)
                    break
                except (OSError, TimeoutError, Malformed) as error:
                    why = f"name server {server[0]}: {str(error) or 'no answer'}"
        if self._servers is None:
            return await _of_system(name, why)
        raise NotResolved(why)

    async def _ask(self, server: Server, name: str) -> Answer:
        for kind in (_A, _AAAA):
            found = await self._exchange(server, name, kind)
            if found.addresses:
                ttl_s = min(max(found.ttl_s, MIN_TTL_S), MAX_TTL_S)
                return Answer(tuple(sorted(found.addresses)[:MAX_ADDRESSES]), ttl_s)
        raise NotResolved(f"{name} has no address")

    async def _exchange(self, server: Server, name: str, kind: int) -> Answer:
        number = secrets.randbelow(1 << 16)
        message = query(number, name, kind)
        async with asyncio.timeout(TIMEOUT_S):
            data = await _by_udp(server, message)
            if is_truncated(data):
                data = await _by_tcp(server, message)
        return answer(data, number, name, kind)


async def _by_udp(server: Server, message: bytes) -> bytes:
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, address: object) -> None:
            if not received.done() and data[:2] == message[:2]:
                received.set_result(data)

        def error_received(self, error: Exception) -> None:
            if not received.done():
                received.set_exception(error)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, remote_addr=server)
    try:
        transport.sendto(message)
        return await received
    finally:
        transport.close()


async def _by_tcp(server: Server, message: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(message)) + message)
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise Malformed("an answer that breaks off") from None
    finally:
        writer.close()


async def _of_system(name: str, why: str) -> Answer:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        raise NotResolved(why) from None
    addresses = sorted({str(each[4][0]) for each in found})
    fourth = [each for each in addresses if ":" not in each]
    return Answer(tuple((fourth or addresses)[:MAX_ADDRESSES]), SYSTEM_TTL_S)
