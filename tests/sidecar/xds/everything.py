"""`everything.yaml`, with certificates that are good."""

import base64
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from tests.certificates import Authority, Leaf

OFFERED: Final = str(Path(__file__).parent / "offered")
"""As if installed: the filter in plain Python that the sample names."""
SAMPLE: Final = Path(__file__).parent / "everything.yaml"


@cache
def papers() -> tuple[Authority, Leaf]:
    """An authority and what it signed."""
    root = Authority()
    return root, root.sign(dns=("orders.shop",))


@cache
def _text() -> Any:
    return YAML(typ="safe").load(SAMPLE.read_text(encoding="utf-8"))


def document(folder: Path) -> Any:
    """The bootstrap that sets every supported field."""
    if OFFERED not in sys.path:
        sys.path.append(OFFERED)
    root, leaf = papers()
    (folder / "ca.pem").write_bytes(root.pem)
    words = {
        "CHAIN": leaf.chain.decode(),
        "KEY": base64.b64encode(leaf.key).decode(),
        "CA": str(folder / "ca.pem"),
    }

    def filled(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: filled(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [filled(value) for value in tree]
        return words.get(tree, tree) if isinstance(tree, str) else tree

    return filled(deepcopy(_text()))
