"""The typer application to which the commands add themselves."""

from typing import Annotated

import typer

from remora.output import line

app = typer.Typer(
    name="remora",
    help="A gRPC service mesh: control plane, sidecars, and what to ask them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        line(f"remora {version('remora')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
