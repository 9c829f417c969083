"""A gRPC client that knows nothing of a mesh: `client.py TARGET [COUNT]` makes so many calls and prints what came back, as JSON."""

import json
import sys
from collections import Counter

import grpc
from schema import messages, services  # type: ignore[import-not-found]


def main() -> int:
    target, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    outcomes: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    with grpc.insecure_channel(target) as channel:
        stub = services.EchoStub(channel)
        for number in range(count):
            try:
                answer = stub.Unary(messages.Note(text=f"hello {number}"), timeout=5)
                outcomes["OK"] += 1
                texts[answer.instance] += 1
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1
                texts[str(error.details())] += 1
    print(json.dumps({"outcomes": outcomes, "said": texts}))
    return 0 if set(outcomes) <= {"OK"} else 1


sys.exit(main())
