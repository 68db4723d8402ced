"""What ends a training on Ray Train, out of what that wraps it in, and which of it is not tried again.

    a rank raises -> WorkerGroupError.worker_failures -> tried again, max_failures times -> fit() raises it
                 `-> NoTryInVain raises it in the controller -> ControllerError.controller_failure -> fit() raises it

Both are errors of Ray's, with a rank's traceback for a text. Always true of what `ended_by` gives: it is the rank's own
error, so that a sentence for a person arrives as one (`UserError`), and what storage refused as that (OSError).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from cluster.errors import RunBroken, UserError
from cluster.storage_failures import for_a_person

SPOKEN = (UserError, RunBroken, OSError)  # say by themselves what happened; all else is a bug, or Ray's own affair


class NoTryInVain(UserCallback):
    """Ends the training with a rank's error that is for a person to mend. Called in the controller of Ray Train, which
    tries again after errors of ranks, and never after one of a callback."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raise the first such error."""
        for error in _in_order(worker_exceptions):
            if for_a_person(error):
                raise error


def ended_by(error: TrainingFailedError) -> Exception | None:
    """The error of a rank, or of the controller, that tells why the training ended; None where there is none.

    Of several ranks what is for a person comes first, then the lowest rank: the others fail because one did.
    """
    found: list[Exception] = []
    if isinstance(error, ControllerError):
        found = [error.controller_failure]
    elif isinstance(error, WorkerGroupError):
        found = _in_order(error.worker_failures)
    spoken = [one for one in found if isinstance(one, SPOKEN)]
    return min(spoken, key=lambda one: not for_a_person(one), default=None)


def _in_order(failures: Mapping[int, Exception]) -> list[Exception]:
    return [failures[rank] for rank in sorted(failures)]
