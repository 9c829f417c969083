"""`python -m tests.differential [FILE…]`: the report, one line a case. Files of the same form may lie anywhere.

Exit code 0 if every case is as expected, 1 if not, 2 if a file is no case file.
"""

import sys
from collections import Counter
from pathlib import Path

from tests.differential.cases import CaseFile, all_files, load
from tests.differential.compare import faults
from tests.differential.lab import Lab


def main(paths: list[str]) -> int:
    """Run them and print."""
    try:
        files = [load(Path(path)) for path in paths] or all_files()
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    verdicts: Counter[str] = Counter()
    for key in sorted({file.key for file in files}):
        _report([file for file in files if file.key == key], verdicts)
    total = sum(verdicts.values())
    print(
        f"{total} cases: {verdicts['same']} same, {verdicts['differs']} differ as documented, {verdicts['FAULT']} faults"
    )
    return 1 if verdicts["FAULT"] else 0


def _report(files: list[CaseFile], verdicts: Counter[str]) -> None:
    lab = Lab(files[0])
    try:
        for file in files:
            for case in file.cases:
                outcomes = lab.run(case)
                found = faults(case, outcomes)
                verdict = "FAULT" if found else "differs" if case.differs else "same"
                verdicts[verdict] += 1
                lines = {
                    name: " | ".join(outcome.lines) or str(dict(outcome.spread)) for name, outcome in outcomes.items()
                }
                same = len(set(lines.values())) == 1
                print(f"{verdict:8} {case.id}: {lines['remora'] if same else f'{lines}'}")
                for text in found:
                    print("    " + text.replace("\n", "\n    "))
    finally:
        lab.close()


sys.exit(main(sys.argv[1:]))
