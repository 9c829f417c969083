"""What the compiler does not check, and would go wrong only in the compiled form."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
HOT: Final = re.findall(r'^    "(sidecar/.*\.py)",$', (ROOT / "setup.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", HOT)
def test_a_caught_exception_has_a_name_of_its_own_in_a_function(path: str) -> None:
    # mypyc gives a variable one type for the whole function: the second `except OtherError as error` raises TypeError.
    clashes = []
    for function in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        caught: dict[str, str] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
                kind = ast.unparse(node.type)
                if caught.setdefault(node.name, kind) != kind:
                    clashes.append(f"{path}:{node.lineno}: {node.name} is {caught[node.name]} and {kind}")
    assert not clashes


def test_there_are_modules_to_compile() -> None:
    assert len(HOT) > 10 and all((ROOT / path).exists() for path in HOT)
