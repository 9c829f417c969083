"""The generator as a program: one load, its figures as JSON on standard output; exit code 1 and a sentence if any call failed."""

import argparse
import json
import sys

from benchmarks.load.generate import closed_loop, open_loop, streams
from benchmarks.load.wire import LoadError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("kind", choices=("closed", "streams", "open"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--size", type=int, default=128, help="bytes of a message")
    parser.add_argument("--messages", type=int, default=50, help="of one stream")
    parser.add_argument("--rate", type=float, default=1000.0, help="calls per second, open loop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--differ", action="store_true", help="four headers differ in each call")
    return parser.parse_args()


def main() -> int:
    """Make the load that the command line asks for."""
    words = _arguments()
    try:
        match words.kind:
            case "closed":
                seconds = closed_loop(
                    words.port,
                    calls=words.calls,
                    connections=words.connections,
                    in_flight=words.in_flight,
                    size=words.size,
                    differ=words.differ,
                    seed=words.seed,
                )
                figures = {"seconds": seconds}
            case "streams":
                seconds = streams(
                    words.port,
                    calls=words.calls,
                    messages=words.messages,
                    connections=words.connections,
                    in_flight=words.in_flight,
                    size=words.size,
                    seed=words.seed,
                )
                figures = {"seconds": seconds}
            case _:
                latencies = sorted(
                    open_loop(
                        words.port,
                        calls=words.calls,
                        rate=words.rate,
                        connections=words.connections,
                        size=words.size,
                        seed=words.seed,
                    )
                )
                figures = {
                    f"p{percent:g}": latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))]
                    for percent in (50, 90, 99, 99.9)
                }
    except (LoadError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


sys.exit(main())
