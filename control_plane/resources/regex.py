"""Regular expressions that mean the same to every data plane: what RE2 (Envoy) and Python's `re` (our sidecar) both take.

Python takes what RE2 refuses (look-around, back references) or reads otherwise (`{,3}`, `[[:alpha:]]`), and Envoy answers to such a
route with a NACK. So a pattern is read token by token here, and what is not in the common part is refused by name.
Only ASCII: on the wire a header's value is bytes, which the two engines decode differently.
"""

import re
import warnings
from typing import Final

MAX_REPEATS: Final = 1000
"""Of one thing, nested repetitions multiplied (RE2's limit)."""
MAX_STEPS: Final = 5000
"""Size of the pattern with repetitions written out: RE2 refuses what needs more memory than it may have."""

MAX_QUICK_REPEATS: Final = 3

_ESCAPE: Final = r"\\(?:[dDwWsSnrtfva]|x[0-9a-fA-F]{2}|[!-/:-@\[-`{-~ ])"
_TOKEN: Final = re.compile(
    rf"""
    (?P<escape>{_ESCAPE}|\\[bBA])
    |(?P<set>\[\^?\]?(?:{_ESCAPE}|(?!--|&&|~~|\|\|)[^\\\]\[])*\])
    |(?P<open>\((?:\?:|\?P<[A-Za-z_][A-Za-z0-9_]*>|\?[ims]*(?:-[ims]+)?:|(?!\?)))
    |(?P<close>\))
    |(?P<repeat>(?:[*+?]|\{{(?P<least>[0-9]{{1,4}})(?:,(?P<most>[0-9]{{0,4}}))?\}})\??)
    |(?P<literal>[^\\\[\](){{}}*+?])
    """,
    re.VERBOSE | re.ASCII,
)
_NOTHING: Final = (0, 0)
_HINTS: Final = (
    ("(?=", "look-ahead is not available"),
    ("(?!", "look-ahead is not available"),
    ("(?<", "look-behind is not available"),
    ("(?P=", "a reference to a group is not available"),
    ("(?", "only (?: ), (?P<name> ) and flags such as (?i: ) are available"),
    ("{", "write \\{ for a brace, or a repetition such as {2,3}"),
    ("}", "write \\} for a brace"),
    ("]", "write \\] for a bracket"),
    ("[", "the set is not closed, or holds a [ that must be written \\["),
    ("\\", "this escape is not available"),
)


def fault(pattern: str) -> str | None:
    """Why a pattern is refused, in words that name the place; None if every data plane takes it."""
    if not pattern.isascii() or not pattern.isprintable():
        return "only printable ASCII is available"
    found = _outside_of_both(pattern)
    if found is not None:
        return found
    try:
        with warnings.catch_warnings(
            action="error", category=FutureWarning
        ):  # of sets that a later Python reads otherwise
            re.compile(pattern)
    except (re.error, OverflowError, FutureWarning) as error:
        return str(error)
    return None


def _outside_of_both(pattern: str) -> str | None:
    position = 0
    groups = [(0, 1)]  # of the groups that are open: (steps so far, most repeats inside)
    atom = _NOTHING  # what a repetition would repeat
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            return f"{_hint(pattern, position)} (position {position})"
        match token.lastgroup:
            case "open":
                groups.append((0, 1))
                atom = _NOTHING
            case "close" if len(groups) == 1:
                return f"a ) too much (position {position})"
            case "close":
                steps, repeats = groups.pop()
                atom = max(steps, 1), repeats
                groups[-1] = groups[-1][0] + atom[0], max(groups[-1][1], repeats)
            case "repeat" if atom == _NOTHING:
                return f"nothing to repeat, or two repetitions in a row (position {position})"
            case "repeat":
                times = max(1, int(token["least"] or 1), int(token["most"] or 1))
                if atom[1] * times > MAX_REPEATS:
                    return f"more than {MAX_REPEATS} repetitions (position {position})"
                groups[-1] = groups[-1][0] + atom[0] * (times - 1), max(groups[-1][1], atom[1] * times)
                atom = _NOTHING
            case _:
                atom = (1, 1)
                groups[-1] = groups[-1][0] + 1, groups[-1][1]
        if sum(steps for steps, _ in groups) > MAX_STEPS:
            return f"too large: more than {MAX_STEPS} steps when repetitions are written out"
        position = token.end()
    return None


def _hint(pattern: str, position: int) -> str:
    for beginning, words in _HINTS:
        if pattern.startswith(beginning, position):
            return words
    return f'"{pattern[position]}" cannot stand here'


def is_quick(pattern: str) -> bool:
    """True if Python's `re`, which tries and goes back, cannot take long over a short text.

    That is so where nothing is repeated that holds a repetition or a choice, and little is repeated at all. The pattern must be one
    that `fault` has nothing against.
    """
    has_choices = [False]
    repeats, last_had_choices = 0, False
    for token in _TOKEN.finditer(pattern):
        match token.lastgroup:
            case "open":
                has_choices.append(False)
            case "close":
                last_had_choices = has_choices.pop()
                has_choices[-1] |= last_had_choices
                continue
            case "repeat":
                repeats += 1
                if last_had_choices or repeats > MAX_QUICK_REPEATS:
                    return False
                has_choices[-1] = True
            case _:
                has_choices[-1] |= token.group() == "|"
        last_had_choices = False
    return True
