"""`python -m apps.bookstore.shoppers --orders orders.shop:50051 --rate 40 --seed 7 --for 30s`

Standard output has one JSON line a second, or `--every` so often (`tally` shows one) and a final one. SIGTERM and SIGINT end it early: calls in flight
finish, the final line is printed. Exit code 0; 130 after SIGINT.
"""

import argparse
import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from apps.bookstore import calling
from apps.bookstore.shoppers.load import Plan, shop

EXIT_DONE: Final = 0
EXIT_INTERRUPTED: Final = 130
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f'"{text}" is no duration above 0, such as 30s, 500ms or 2m')
    return float(match[1]) * _UNIT_S[match[2]]


def _above_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 10_000:
        raise argparse.ArgumentTypeError(f'"{text}" is out of range; a number above 0, up to 10000, is needed')
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f'"{text}" is out of range; 1 to 10000 is needed')
    return int(text)


def plan_of(arguments: Sequence[str]) -> Plan:
    """What the command line asks for; ends the program with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m apps.bookstore.shoppers", description="Readers who buy books.")
    orders = os.environ.get("ORDERS_TARGET") or calling.ORDERS
    add = parser.add_argument
    add("--orders", default=orders, metavar="HOST:PORT", help="where orders is called (default: %(default)s)")
    add("--rate", type=_above_0, default=40.0, help="purchases per second (default: 40)")
    add("--seed", type=int, default=1, help="decides who buys what (default: 1)")
    add("--for", type=_seconds, dest="duration_s", metavar="DURATION", help="such as 30s (default: until stopped)")
    add("--timeout", type=_seconds, default=3.0, metavar="DURATION", help="deadline of a purchase (default: 3s)")
    add("--in-flight", type=_count, default=64, help="purchases at the same time, at most (default: 64)")
    add("--readers", type=_count, default=100, help="how many people shop (default: 100)")
    add("--every", type=_seconds, default=1.0, metavar="DURATION", help="between two lines of output (default: 1s)")
    add("--prefix", default=f"{time.time_ns() // 1_000_000:x}", help="of the order ids (default: from the time)")
    given = parser.parse_args(arguments)
    return Plan(
        orders=given.orders,
        rate=given.rate,
        seed=given.seed,
        prefix=given.prefix,
        duration_s=given.duration_s,
        most_in_flight=given.in_flight,
        timeout_s=given.timeout,
        readers=given.readers,
        report_interval_s=given.every,
    )


async def _main(plan: Plan) -> int:
    stop = asyncio.Event()
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await shop(plan, stop, lambda line: print(line, flush=True))
    return EXIT_INTERRUPTED if signal.SIGINT in received else EXIT_DONE


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(plan_of(sys.argv[1:]))))
