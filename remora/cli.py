"""The command `remora`: from the words of a command line to an exit code.

What fails is said in one line on standard error; tracebacks are for bugs only. `remora sidecar -c FILE` goes past the rest of the command
line on purpose: there is one beside every service, and typer and rich would cost each of them 13 MiB and a tenth of a second.
"""

import os
import signal
import sys
from typing import Any, NoReturn

from remora import environment, exits


def _interrupted(number: int, frame: object) -> NoReturn:
    os._exit(exits.INTERRUPTED)


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)  # while modules load there is nothing to clean up
    environment.prepare()
    words = sys.argv[1:]
    if words[:1] == ["sidecar"] and len(words) in (3, 5):
        options = dict(zip(words[1::2], words[2::2], strict=True))
        config = options.pop("-c", None) or options.pop("--config", None)
        snapshot = options.pop("--snapshot", None)
        if config and not options:
            from remora.sidecar import main as sidecar

            sys.exit(sidecar(config, snapshot))
    if words[:2] == ["ready", "--admin"] and len(words) == 3:  # a probe, once a second
        host, _, port = words[2].rpartition(":")
        if host and port.isascii() and port.isdigit():
            from remora.agent.ready import ready

            sys.exit(ready(host, int(port)))
    sys.exit(_run())


def _run() -> int:
    from remora.addresses import UsageError
    from remora.commands import app
    from remora.commands.failure import Failure
    from remora.output import OutputClosed, OutputFailed

    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return app(standalone_mode=False) or exits.DONE
    except UsageError as error:
        print(f"remora: {error}", file=sys.stderr)
        return exits.BAD_INPUT
    except Failure as error:
        print(f"remora: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except OutputClosed:
        return exits.DONE
    except OutputFailed as error:
        print(f"remora: {error}", file=sys.stderr)
        return exits.NO
    except Exception as error:
        code = _usage_code(error)
        if code is None:
            raise
        return code


def _usage_code(error: Any) -> int | None:
    """The exit code of what typer says of wrong usage, said in one line; None for any other exception."""
    import typer

    if isinstance(error, typer.Abort):
        return exits.INTERRUPTED
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "remora"
    text = error.format_message()
    if text:  # none if it was only `remora`, whose help has been printed
        text = text[0].lower() + text[1:].replace("Value error, ", "").removesuffix(".")
        print(f"{command}: {text}; `{command} -h` tells more", file=sys.stderr)
    return exits.BAD_INPUT
