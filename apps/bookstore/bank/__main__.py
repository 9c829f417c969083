"""`python -m apps.bookstore.bank`; `serving` says what the environment sets.

Also: BANK_SLOWEST_S, BANK_LIES, BANK_REFUSES (`service.Character`), and BANK_SEED, which decides when.
"""

import os
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import serving
from apps.bookstore.bank import statement
from apps.bookstore.bank.service import BankService, Character
from apps.bookstore.database import Database
from proto.bookstore.v1 import payment_pb2, payment_pb2_grpc


def character(environment: Mapping[str, str]) -> Character:
    """Raises BadSettings."""
    usual = Character()
    return Character(
        slowest_s=_number(environment, "BANK_SLOWEST_S", usual.slowest_s, 60.0),
        lies=_number(environment, "BANK_LIES", usual.lies, 1.0),
        refuses=_number(environment, "BANK_REFUSES", usual.refuses, 1.0),
    )


def _number(environment: Mapping[str, str], name: str, usual: float, most: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text) if text else usual
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise serving.BadSettings(f'{name}: "{text}" is out of range; 0 to {most:g} is needed')
    return value


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put the bank on a server."""
    behaves = character(os.environ)
    database = Database(settings.place(statement.FILE), settings.synchronous)
    try:
        await database.run(statement.prepare)
        dice = random.Random(os.environ.get("BANK_SEED") or None)
        payment_pb2_grpc.add_BankServicer_to_server(BankService(database, behaves, dice), server)
        yield
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(serving.run(payment_pb2.DESCRIPTOR.services_by_name["Bank"], attach))
