"""A DNS server on loopback that says what a test lets it say, by UDP and TCP. Its messages are put together by hand, not by what is tested."""

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.ports import free_ports

A, AAAA, CNAME = 1, 28, 5


def encoded(name: str) -> bytes:
    return b"".join(bytes((len(part),)) + part.encode() for part in name.split(".")) + b"\0"


def record(name: bytes, kind: int, value: str, ttl: int) -> bytes:
    """A resource record; a name may be a pointer to the question, `\\xc0\\x0c`."""
    data = encoded(value) if kind == CNAME else ipaddress.ip_address(value).packed
    return name + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


@dataclass
class NameServer:
    """What it knows: records by (name, kind), each (kind, value, ttl)."""

    port: int
    zone: dict[tuple[str, int], list[tuple[int, str, int]]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    is_mute: bool = False
    truncates: bool = False

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def knows(self, name: str, *addresses: str, ttl: int = 300) -> None:
        """From now on a name has these IPv4 addresses."""
        self.zone[name, A] = [(A, address, ttl) for address in addresses]

    def answer(self, query: bytes, *, may_truncate: bool) -> bytes | None:
        """To a query with one question."""
        place, labels = 12, []
        while length := query[place]:
            labels.append(query[place + 1 : place + 1 + length].decode())
            place += 1 + length
        question = query[12 : place + 5]
        name, (kind,) = ".".join(labels), struct.unpack_from("!H", query, place + 1)
        self.asked.append((name, kind))
        if self.is_mute:
            return None
        known = any(owner == name for owner, _ in self.zone)
        records = self.zone.get((name, kind), [])
        flags = 0x8180 if known else 0x8183
        if self.truncates and may_truncate:
            return query[:2] + struct.pack("!5H", flags | 0x0200, 1, 0, 0, 0) + question
        found, owner = b"", b"\xc0\x0c"
        for of, value, ttl in records:
            found += record(owner, of, value, ttl)
            owner = encoded(value) if of == CNAME else owner
        return query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + question + found


@asynccontextmanager
async def serving() -> AsyncIterator[NameServer]:
    """A name server that runs."""
    (port,) = free_ports(1)
    server = NameServer(port)

    class Udp(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            said = server.answer(data, may_truncate=True)
            if said is not None:
                self.transport.sendto(said, address)

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        said = server.answer(await reader.readexactly(length), may_truncate=False) or b""
        writer.write(struct.pack("!H", len(said)) + said)
        writer.close()

    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(Udp, local_addr=server.address)
    listener = await asyncio.start_server(tcp, *server.address)
    try:
        yield server
    finally:
        udp.close()
        listener.close()
