"""Checks a recorded history: `python -m apps.transactions.audit history.jsonl`. Exit code 0: all is well; 1: it is not; 2: no history."""

import sys
from pathlib import Path

from apps.transactions.audit import check, load


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m apps.transactions.audit HISTORY", file=sys.stderr)
        return 2
    try:
        facts = load(Path(arguments[0]))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    violations = check(facts)
    for each in violations:
        print(each)
    print(f"{len(facts)} facts, {len(violations)} violations", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
