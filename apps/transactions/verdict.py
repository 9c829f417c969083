"""What a participant's status means to whoever drives the transaction.

| status | meaning |
|---|---|
| OK | done |
| ABORTED | not done, and never will be: roll back |
| FAILED_PRECONDITION with "ONGOING" in its message | under way: ask again, it is no failure |
| anything else | nobody knows whether it was done: ask again |
"""

from typing import Final

import grpc

from apps.transactions.context import Verdict

ONGOING_MARK: Final = "ONGOING"


def verdict(code: grpc.StatusCode, message: str | None) -> Verdict:
    """Read a status."""
    if code is grpc.StatusCode.OK:
        return Verdict.DONE
    if code is grpc.StatusCode.ABORTED:
        return Verdict.REFUSED
    if code is grpc.StatusCode.FAILED_PRECONDITION and ONGOING_MARK in (message or ""):
        return Verdict.ONGOING
    return Verdict.UNKNOWN
