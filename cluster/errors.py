"""The errors that a person is meant to read.

Raised where the cause is known, as clear sentences that say what to do; the command line prints them and exits with
code 2, or 1 where another try may do. Everything else keeps its traceback, because it is a bug. (Failures of
episodes are data, not errors: `policy | data | infra` live with the records in actors/agent.)
"""


class UserError(Exception):
    """What the person asked for cannot be done, and they can mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RunBroken(RuntimeError):
    """Something that a run stands on has failed (a process, a machine, a deadline): it goes on when started again."""
