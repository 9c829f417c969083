"""The page on data planes holds the matrix as the source has it."""

from typing import Final

from control_plane.resources import kinds
from control_plane.translate.capabilities import MATRIX, NEVER, NOT_PROXYLESS, Row, since
from control_plane.translate.clients import Client
from proto.mesh.v1 import api_pb2
from tests.tools import ROOT

PAGE: Final = ROOT / "docs" / "data-planes.md"
BEGIN: Final = "<!-- made from control_plane/translate/capabilities.py; a test prints it when it differs -->\n"
END: Final = "<!-- end of the matrix -->"


def cell(row: Row, client: Client) -> str:
    """What a client does."""
    version = since(row, client)
    if version == NEVER:
        return "no"
    return "yes" if version == (0,) else f"from {'.'.join(map(str, version))}"


def spelled(kind: str, field: str) -> str:
    """A field of a spec as YAML has it."""
    found = kinds.named(kind)
    assert found is not None
    spec = api_pb2.Resource.DESCRIPTOR.fields_by_name[found.field].message_type
    assert spec is not None
    return spec.fields_by_name[field].json_name


def table() -> str:
    """The matrix in Markdown."""
    lines = [f"| policy | field | {' | '.join(Client)} | otherwise |", "|---" * (len(Client) + 3) + "|"]
    for (kind, field, value), row in MATRIX.items():
        shown = f"`{spelled(kind, field)}: {value}`" if value else f"`{spelled(kind, field)}`"
        lines.append(f"| {kind} | {shown} | {' | '.join(cell(row, each) for each in Client)} | {row.otherwise} |")
    for kind in NOT_PROXYLESS:
        cells = ["yes" if each in (Client.REMORA, Client.ENVOY) else "no" for each in Client]
        lines.append(f"| {kind} | all | {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"


def test_the_page_holds_the_matrix() -> None:
    text = PAGE.read_text()
    found = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert found == table(), f"put this into {PAGE}:\n{table()}"
