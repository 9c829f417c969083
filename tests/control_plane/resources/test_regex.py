"""Which regular expressions every data plane reads alike. The oracle is Envoy itself: it loads what is taken here."""

import asyncio
import json
import re
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.resources import regex
from control_plane.translate.resources import MAX_REGEX_PROGRAM
from tests.tools import envoy

TAKEN: Final = [
    "",
    "v[12]",
    "a|b|",
    "(?:a|b)+c?",
    "(a+)+$",
    r"^\d{2,3}$",
    "a??b*?c+?",
    "a{2,}b{0}c{3}d{0,1}",
    "(?P<version>v[0-9]+)",
    "(?i:abc)(?s:.)(?m:^x$)(?i-s:y)(?-i:z)",
    "[]a][^]a][a\\]b][-a][a-]",
    r"[\w.-]+@[\d\s]+",
    r"\.\/\[\]\(\)\{\}\*\+\?\^\$\|\\\ \"\-\_\~",
    r"\n\r\t\f\v\a\x41\A\b\B\D\W\S",
    "(){3}",
    "(a{30}){30}",
    ".{1000}",
    "a{1000}" * 5,
    "[a-z]{500}" * 10,
    r"\W{1000}" * 5,
    "(?i:[^a]{1000})" * 5,
    "((((((((((a))))))))))",
]
REFUSED: Final = [
    ("a*+", "two repetitions in a row (position 2)"),
    ("a**", "two repetitions in a row (position 2)"),
    ("a{2}{3}", "two repetitions in a row (position 4)"),
    ("a???", "two repetitions in a row (position 3)"),
    ("*a", "nothing to repeat"),
    ("(*a)", "nothing to repeat"),
    ("a|*", "nothing to repeat"),
    ("(?=a)", "look-ahead is not available (position 0)"),
    ("a(?!b)", "look-ahead is not available (position 1)"),
    ("(?<!a)b", "look-behind is not available"),
    (r"(a)\1", "this escape is not available (position 3)"),
    ("(?P<x>a)(?P=x)", "a reference to a group is not available"),
    ("(?i)a", "flags such as (?i: ) are available"),
    ("(?x:a)", "flags such as (?i: ) are available"),
    ("(?#note)", "are available"),
    ("(?>a)", "are available"),
    ("[[:alpha:]]", "holds a [ that must be written \\["),
    ("[a&&b]", "the set is not closed"),
    ("[a", "the set is not closed"),
    ("a]", "write \\] for a bracket"),
    ("{", "write \\{ for a brace"),
    ("a}", "write \\} for a brace"),
    ("a{,3}", "write \\{ for a brace"),
    (r"\z", "this escape is not available"),
    (r"\Z", "this escape is not available"),
    (r"\pL", "this escape is not available"),
    (r"\u0041", "this escape is not available"),
    (r"\Qa\E", "this escape is not available"),
    (r"[\b]", "the set is not closed"),
    ("a\\", "this escape is not available"),
    ("(", "missing )"),
    (")", "a ) too much (position 0)"),
    ("[z-a]", "bad character range"),
    ("a{3,2}", "min repeat greater than max repeat"),
    ("(?P<x>a)(?P<x>b)", "redefinition of group"),
    ("a{1001}", "more than 1000 repetitions"),
    ("(a{40}){40}", "more than 1000 repetitions"),
    ("a{1000}" * 6, "more than 5000 steps"),
    ("é", "only printable ASCII"),
    ("a\nb", "only printable ASCII"),
]


@pytest.mark.parametrize("pattern", TAKEN)
def test_what_both_read_is_taken(pattern: str) -> None:
    assert regex.fault(pattern) is None


@pytest.mark.parametrize(("pattern", "reason"), REFUSED)
def test_what_only_one_reads_is_refused_and_named(pattern: str, reason: str) -> None:
    assert reason in (regex.fault(pattern) or "taken")


_PARTS: Final = [
    *(
        "a",
        "b",
        ".",
        "^",
        "$",
        "|",
        "(",
        ")",
        "(?:",
        "(?i:",
        "(?P<n>",
        "[",
        "]",
        "[^",
        "-",
        "{",
        "}",
        "{2}",
        "{2,3}",
        "*",
    ),
    *("+", "?", "\\d", "\\w", "\\.", "\\\\", "\\x41", "\\b", ",", "1", "(?=", "\\1", "&&", "~"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=12).map("".join) | st.text(max_size=20))
def test_what_is_taken_compiles_here_and_the_answer_always_comes(pattern: str) -> None:
    if regex.fault(pattern) is None:
        re.compile(pattern, re.ASCII)


def taken_by_chance(count: int) -> list[str]:
    """Patterns that are taken, of every shape that these parts can give."""
    chance, found = Random(5), list[str]()
    parts = [
        "a",
        ".",
        "^",
        "$",
        "|",
        "(a|b)",
        "(?:",
        ")",
        "(?i:a)",
        "[a-c]",
        "[^a]",
        "[]x]",
        "{2}",
        "{2,3}",
        "{0,}",
        "*",
        "+",
    ]
    parts += ["?", "\\d", "\\W", "\\.", "\\x41", "\\b", "\\A", "1", "-", "[\\w-]", "(", "(?P<n>a)", "(?-s:.)"]
    while len(found) < count:
        pattern = "".join(chance.choice(parts) for _ in range(chance.randint(1, 10)))
        if regex.fault(pattern) is None:
            found.append(pattern)
    return found


def route(pattern: str) -> dict[str, Any]:
    """As translation writes it."""
    limit = {"max_program_size": MAX_REGEX_PROGRAM}
    return {
        "match": {"safe_regex": {"regex": f"/(?:{pattern})", "google_re2": limit}},
        "direct_response": {"status": 200},
    }


async def test_envoy_loads_every_pattern_that_is_taken(tmp_path: Path) -> None:
    routes = [route(pattern) for pattern in [*TAKEN, *taken_by_chance(2000)]]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "regex",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "regex",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
    process = await asyncio.create_subprocess_exec(
        envoy(),
        "--mode",
        "validate",
        "-c",
        str(file),
        "-l",
        "error",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-2000:]


@pytest.mark.parametrize(
    ("pattern", "is_quick"),
    [
        ("cart~[0-9]+", True),
        ("(?:cart|shop)~.*", True),
        ("(ab+)c*d{2,3}", True),
        ("(a*)*b", False),
        ("(a|a)*b", False),
        ("((a|b)c){2}", False),
        ("a*a*a*a*b", False),
        (r"\(a*\)*", True),
        ("[(|*]*", True),
    ],
)
def test_a_pattern_that_cannot_take_long(pattern: str, is_quick: bool) -> None:
    assert regex.fault(pattern) is None
    assert regex.is_quick(pattern) is is_quick
