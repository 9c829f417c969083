"""Options that many commands share."""

from typing import Annotated, Final

import typer

from remora.output import Output

DEFAULT_SERVER: Final = "127.0.0.1:15010"

Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="REMORA_SERVER",
        metavar="HOST:PORT[,…]",
        help="The control plane; of several replicas any will do.",
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")]
File = Annotated[list[str], typer.Option("--filename", "--file", "-f", help="YAML file, or - for standard input.")]
Weight = Annotated[int, typer.Option(min=1, max=1_000_000, help="Share of calls beside the other instances.")]
Locality = Annotated[
    str,
    typer.Option(
        "--locality",
        envvar="REMORA_LOCALITY",
        metavar="REGION[/ZONE[/SUBZONE]]",
        help="Where it runs, for failover and zones.",
    ),
]
Service = Annotated[str, typer.Argument(metavar="NAME[.NAMESPACE]", help="The service.")]
