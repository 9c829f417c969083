"""Commands about Kubernetes that need no cluster: a sidecar into documents, and out again."""

import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from remora.addresses import UsageError, servers
from remora.commands.app import app
from remora.commands.options import File
from remora.output import line, note

if TYPE_CHECKING:
    from control_plane.kubernetes.inject import Outcome

SERVER: Final = "remora.remora-system.svc:15010"
Explain = Annotated[
    bool, typer.Option("--explain", help="Say on standard error what was done, and what was not and why.")
]


@app.command()
def inject(
    filename: File,
    server: Annotated[
        str, typer.Option("--server", metavar="HOST:PORT[,…]", help="The control plane, as pods reach it.")
    ] = SERVER,
    image: Annotated[str, typer.Option(help="The sidecar's image; default: remora/sidecar of this release.")] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of documents that name none; default: wherever the pod runs.")
    ] = "",
    explain: Explain = False,
) -> None:
    """Put a sidecar into the pods of Kubernetes documents, and print them. Twice is the same as once."""
    from importlib.metadata import version

    from control_plane.kubernetes.inject import Settings
    from control_plane.kubernetes.inject import inject as change

    servers(server, "--server")
    settings = Settings(server, image or f"remora/sidecar:{version('remora')}", namespace)
    _each(filename, lambda document: change(document, settings), explain)


@app.command()
def uninject(filename: File, explain: Explain = False) -> None:
    """Take out of Kubernetes documents what `remora inject` put in, and print them."""
    from control_plane.kubernetes.inject import uninject as change

    _each(filename, change, explain)


def _each(names: list[str], change: "Callable[[Any], Outcome]", explain: bool) -> None:
    """Change every document of the files; print all of them, or nothing. Comments and spelling are kept."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from control_plane.kubernetes.inject import CannotInject

    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.explicit_start = True
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    changed: list[Any] = []
    said: list[str] = []
    for name in names:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text()
            documents = [each for each in yaml.load_all(text) if each is not None]
        except OSError as error:
            raise UsageError(f"{name}: {(error.strerror or str(error)).lower()}") from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: is no YAML: {str(error).splitlines()[0]}") from None
        for document in documents:
            if not isinstance(document, dict) or "kind" not in document:
                raise UsageError(f"{name}: a document is no object of Kubernetes: it has no kind")
            try:
                outcome = change(document)
            except CannotInject as error:
                raise UsageError(f"{name}: {error}") from None
            changed.append(outcome.document)
            said += outcome.said
    out = StringIO()
    yaml.dump_all(changed, out)
    for sentence in said if explain else ():
        note(f"remora: {sentence}")
    line(out.getvalue().rstrip("\n"))
