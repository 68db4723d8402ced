"""What a run measures: one line of JSON per step, and the same curves for TensorBoard.

`metrics.jsonl` is the record; TensorBoard's files are made for looking. Always true: a logged line survives a kill
of its writer, every line is whole, and no step stands twice, because a run that resumes at a step first drops what
its predecessor wrote after it. On S3, where nothing can be appended to, both live in a scratch folder and are copied
up at every flush: what was logged after the last one is lost with its writer."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import Folder

FILE = "metrics.jsonl"
_TENSORBOARD = "tensorboard"


class Metrics:
    """Writes the measurements of one run. One process, one thread."""

    def __init__(
        self,
        folder: Folder,
        *,
        resume_at: int | None = None,
        flush_every_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`resume_at` is the last step that counts: later ones are dropped, and None starts anew."""
        self._folder = folder
        self._scratch = None if folder.is_local else Path(tempfile.mkdtemp(prefix="mmsearch-metrics-"))
        self._local = folder.local_path if self._scratch is None else self._scratch
        self._local.mkdir(parents=True, exist_ok=True)
        self._clock, self._flush_every_s = clock, flush_every_s
        self._keep(resume_at)
        self._file = (self._local / FILE).open("a", buffering=1)  # a line at a time: a killed process loses none
        self._board = self._open_board(resume_at)
        self._flushed_at = clock()

    def log(self, step: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """One line: `step`, `time` (Unix, s) and the values. Numbers become curves; NaN and infinity become null."""
        now = self._clock()
        named = {f"{prefix}{name}": _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(now, 3), **named}, allow_nan=False) + "\n")
        for name, value in named.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step, walltime=now)
        if now - self._flushed_at >= self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Brings everything logged so far to where the run keeps its results."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        self._flushed_at = self._clock()
        if self._scratch is not None:
            self._folder.upload(self._scratch)

    def close(self) -> None:
        """Flushes for the last time; once is enough, twice is fine."""
        if self._file.closed:
            return
        self.flush()
        self._file.close()
        self._board.close()
        if self._scratch is not None:
            self._folder.upload(self._scratch)
            shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, resume_at: int | None) -> None:
        lines = [] if resume_at is None else [line for line in read(self._folder) if line["step"] <= resume_at]
        Folder(self._local).write_text(FILE, "".join(json.dumps(line) + "\n" for line in lines))

    def _open_board(self, resume_at: int | None) -> Any:
        from tensorboardX import SummaryWriter

        if resume_at is None:
            self._folder.delete(_TENSORBOARD)
        purge = None if resume_at is None else resume_at + 1
        return SummaryWriter(str(self._local / _TENSORBOARD), purge_step=purge, flush_secs=3600)


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
