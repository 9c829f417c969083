"""A gRPC client that has no sidecar, but gRPC's own xDS (`GRPC_XDS_BOOTSTRAP`).

Each line of standard input is an order, `{"target": …, "count": …, "metadata": {…}, "stream": …}`; for each a line of outcomes comes back.
"""

import json
import sys
from collections import Counter
from typing import Any

import grpc
from schema import messages, services  # type: ignore[import-not-found]

channels: dict[str, grpc.Channel] = {}


def obey(target: str, count: int = 1, metadata: dict[str, str] | None = None, stream: int = 0) -> dict[str, Any]:
    """So many calls, one after the other; `stream` makes each a stream of so many messages."""
    if target not in channels:
        channels[target] = grpc.insecure_channel(target)
    stub = services.EchoStub(channels[target])
    given = tuple((metadata or {}).items())
    outcomes: Counter[str] = Counter()
    instances: Counter[str] = Counter()
    for number in range(count):
        try:
            if stream:
                notes = (messages.Note(text=str(each)) for each in range(stream))
                answers = list(stub.BidiStream(notes, timeout=10, metadata=given))
                assert [answer.text for answer in answers] == [str(each) for each in range(stream)]
                instances[answers[0].instance] += 1
            else:
                note = messages.Note(text=f"hello {number}")
                instances[stub.Unary(note, timeout=10, metadata=given).instance] += 1
            outcomes["OK"] += 1
        except grpc.RpcError as error:
            outcomes[f"{error.code().name}: {error.details()}"] += 1
    return {"outcomes": outcomes, "instances": instances}


for line in sys.stdin:
    print(json.dumps(obey(**json.loads(line))), flush=True)
