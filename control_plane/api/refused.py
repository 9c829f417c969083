"""How a method says no."""

import grpc


class Refused(Exception):
    """A call that is answered with a status; `entrance` turns it into one."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
