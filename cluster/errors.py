"""The one error that a person is meant to read.

Raised where the cause is known, as one clear sentence that says what to do; the command line prints the
sentence and exits with code 2. Everything else keeps its traceback, because it is a bug. (Failures of
episodes are data, not errors: `policy | data | infra` live with the records in actors/agent.)
"""


class UserError(Exception):
    """What the person asked for cannot be done, and they can mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
