"""The command `remora`: from the words of a command line to an exit code.

What fails is said in one line on standard error; tracebacks are for bugs only. `remora sidecar -c FILE` goes past the rest of the command
line on purpose: there is one beside every service, and typer and rich would cost each of them 13 MiB and a tenth of a second.
"""

import sys
from typing import NoReturn

from remora import environment, exits


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit."""
    environment.prepare()
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "sidecar" and words[1] in ("-c", "--config"):
        from remora.sidecar import main as sidecar

        sys.exit(sidecar(words[2]))
    sys.exit(_run())


def _run() -> int:
    from remora.addresses import UsageError
    from remora.commands import app
    from remora.commands.failure import Failure

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
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
        return exits.DONE
    except Exception as error:
        code = _usage_code(error)
        if code is None:
            raise
        return code


def _usage_code(error: Exception) -> int | None:
    """The exit code of what typer says of wrong usage; None for any other exception."""
    import typer

    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):
        show()
        return exits.BAD_INPUT
    if isinstance(error, typer.Abort):
        return exits.INTERRUPTED
    return None
