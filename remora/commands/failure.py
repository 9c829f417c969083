"""A command that could not do what was asked: one sentence and an exit code."""


class Failure(Exception):
    """Raised by commands; `remora.cli` prints the text and exits with the code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
