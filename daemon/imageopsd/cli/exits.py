"""How commands end."""

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMED_OUT = 4
    CANNOT_CONNECT = 5
    CONFIGURATION = 78  # EX_CONFIG of sysexits.h; the systemd unit does not restart on it


INTERRUPTED = 130
"""What a shell makes of SIGINT."""


class Failure(Exception):
    """Ends the command with `code` and a message for the user."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
