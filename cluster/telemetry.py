"""What a run measures: one line of JSON per step, and the same curves for people to look at.

`metrics.jsonl` is the record; trackers (cluster/trackers.py; TensorBoard when nothing else is said) show it. Always
true: a logged line survives a kill of its writer, every line is whole, and no step stands twice, because a run that
resumes at a step first drops what its predecessor wrote after it; a line that the disk refuses leaves the file as it
was. No tracker delays a step or ends a run. On S3, where nothing can be appended to, all files live in a scratch folder
and are copied up at every flush: what was logged after the last one is lost with its writer, and a flush that storage
refuses is made again with the next, a few times."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import Folder
from cluster.storage_failures import Patience
from cluster.tracker_thread import TrackerThread
from cluster.trackers import TrackedRun, Tracking

FILE = "metrics.jsonl"
TRACKED = "tracked.json"  # the id under which trackers know this run
CLOSE_S = 30.0  # for all trackers together to finish
_TENSORBOARD = "tensorboard"

Line = Mapping[str, Any]


class Metrics:
    """Writes the measurements of one run. One process, one thread."""

    def __init__(
        self,
        folder: Folder,
        *,
        resume_at: int | None = None,
        keeps: Callable[[Line], bool] = lambda _: True,
        tracking: Tracking | None = None,
        say: Callable[[str], None] = print,
        flush_every_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`resume_at` is the last step that counts: later ones are dropped, and None starts anew.

        `keeps`: of the others, those that count. `say` tells a person of a tracker that fails; any thread may call it.
        """
        self._folder = folder
        self._scratch = None if folder.is_local else Path(tempfile.mkdtemp(prefix="mmsearch-metrics-"))
        self._local = folder.local_path if self._scratch is None else self._scratch
        self._local.mkdir(parents=True, exist_ok=True)
        self._clock, self._flush_every_s = clock, flush_every_s
        self._keep(resume_at, keeps)
        self._file = (self._local / FILE).open("ab", buffering=0)  # whole lines: a killed process loses none
        self._flushes = Patience(say)
        self._trackers = self._start_trackers(tracking or Tracking(), resume_at, say)
        self._flushed_at = clock()

    def log(self, step: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """One line: `step`, `time` (Unix, s) and the values. Numbers become curves; NaN and infinity become null.

        Raise OSError when the disk refuses the line, of which then nothing is there, and `UserError` or `RunBroken`
        when storage refused several flushes.
        """
        now = self._clock()
        named = {f"{prefix}{name}": _plain(value) for name, value in values.items()}
        self._append(json.dumps({"step": step, "time": round(now, 3), **named}, allow_nan=False) + "\n")
        curves = {name: float(value) for name, value in named.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(step, curves)
        if now - self._flushed_at >= self._flush_every_s:
            try:
                self.flush()
            except OSError as error:
                self._flushes.failed(f"{FILE} could not be copied to {self._folder}", error, "it is tried again soon")
            else:
                self._flushes.worked()

    def _append(self, line: str) -> None:
        data, before = line.encode(), self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(before)
            raise

    def flush(self) -> None:
        """Brings everything logged so far to where the run keeps its results."""
        self._flushed_at = self._clock()  # first: a flush that is refused waits its turn again
        os.fsync(self._file.fileno())
        if self._scratch is not None:
            self._folder.upload(self._scratch)

    def close(self) -> None:
        """Flushes for the last time, and waits a while for the trackers; once is enough, twice is fine."""
        if self._file.closed:
            return
        self.flush()
        self._file.close()
        deadline = time.monotonic() + CLOSE_S
        for tracker in self._trackers:
            tracker.close(max(1.0, deadline - time.monotonic()))
        if self._scratch is not None:
            self._folder.upload(self._scratch)
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, resume_at: int | None, keeps: Callable[[Line], bool]) -> None:
        lines = [] if resume_at is None else [line for line in read(self._folder) if line["step"] <= resume_at]
        text = "".join(json.dumps(line) + "\n" for line in lines if keeps(line))
        Folder(self._local).write_text(FILE, text)

    def _start_trackers(
        self, tracking: Tracking, resume_at: int | None, say: Callable[[str], None]
    ) -> list[TrackerThread]:
        if resume_at is None:
            self._folder.delete(_TENSORBOARD)
        run = TrackedRun(
            tracking.name or self._folder.name, self._local, tracking.settings, self._id(resume_at), resume_at
        )
        return [TrackerThread(name, run, say) for name in tracking.trackers]

    def _id(self, resume_at: int | None) -> str:
        """The run's, which a run that starts anew gets for itself."""
        if resume_at is not None and self._folder.exists(TRACKED):
            return str(self._folder.read_json(TRACKED)["id"])
        fresh = uuid.uuid4().hex[:16]
        self._folder.write_json(TRACKED, {"id": fresh})
        return fresh


def read(folder: Folder) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics, oldest first; none if there is no file. A torn last line is left out."""
    try:
        text = folder.read_text(FILE)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def _plain(value: Any) -> Any:
    """numpy's and torch's scalars become Python's; what JSON cannot say becomes null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
