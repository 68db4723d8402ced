"""The best weights of a run, as model folders that anything of this project can start from.

    best/best.json            which is the best: step, version, metric, value, its 95 % interval, and the folder
    best/step-000010/         in Hugging Face format; its own best.json comes last and makes it whole

One folder per step and not one that is overwritten, because a run that goes back to a checkpoint goes back to what was
the best then: a folder goes when neither the newest checkpoints nor the run itself name it any more.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from actors.model.load import upload_model
from cluster.storage import Folder
from cluster.storage_failures import reason_of
from workflows.grpo.evaluation_state import Best

FILE = "best.json"
PREFIX = "step-"

CopyPublished = Callable[[int, str], Awaitable[None]]  # version, address of the model folder to write


class BestModels:
    """`ports.Keeper` on the folder `best/`. `checkpoints`: how many of them are kept, each with a best of its own."""

    def __init__(
        self, folder: Folder, copy: CopyPublished, checkpoints: int, timeout_s: float, say: Callable[[str], None]
    ) -> None:
        self._folder, self._copy, self._timeout_s, self._say = folder, copy, timeout_s, say
        self._current: Best | None = None
        self._keeping: Best | None = None  # is being copied, perhaps beside a checkpoint that cannot name it yet
        self._pruning = asyncio.Lock()
        self._named: deque[Best | None] = deque(maxlen=checkpoints)

    def resume(self, best: Best | None) -> bool:
        """Go on from what a checkpoint names as the best; False if its weights are not there any more."""
        if best and not self.at(best).exists(FILE):
            return False
        self._current = best
        self._named.append(best)
        if best:
            self._point(best)
        return True

    def at(self, best: Best) -> Folder:
        """The model folder."""
        return self._folder / f"{PREFIX}{best.step:06d}"

    async def keep(self, best: Best) -> None:
        """Copy its published weights. Raise `TimeoutError`, or what the storage raises."""
        async with self._pruning:  # may be deleting what a run that was killed left under that name
            self._keeping = best
        try:
            await self._copied(best)
            self._current = best
        finally:
            self._keeping = None
        await asyncio.to_thread(self._point, best)

    async def _copied(self, best: Best) -> None:
        target = self.at(best)
        await asyncio.to_thread(target.delete)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._copy(best.version, target.address)
        except TimeoutError:
            raise TimeoutError(f"keeping the best weights took longer than {self._timeout_s:.0f} s") from None
        await asyncio.to_thread(target.write_json, FILE, asdict(best))

    async def checkpointed(self, best: Best | None) -> None:
        """A checkpoint was made that names `best`: delete what no checkpoint of those that are kept names."""
        self._named.append(best)
        if len(self._named) == self._named.maxlen:
            async with self._pruning:
                needed = {b.step for b in (*self._named, self._current, self._keeping) if b}
                await asyncio.to_thread(self._prune, needed)

    async def export(self, best: Best, target: Folder) -> None:
        """A copy for whoever takes the run's result; `config.json`, which makes it a model, is written last."""
        await asyncio.to_thread(self._export, best, target)

    def _export(self, best: Best, target: Folder) -> None:
        source = self.at(best)
        with tempfile.TemporaryDirectory(prefix="mmsearch-best-") as scratch:
            local = source.local_path if source.is_local else source.download(Path(scratch))
            target.delete()
            upload_model(local, target)

    def _point(self, best: Best) -> None:
        self._folder.write_json(FILE, {**asdict(best), "folder": self.at(best).name})

    def _prune(self, steps: set[int]) -> None:
        try:
            for name in self._folder.list():
                if name.startswith(PREFIX) and int(name.removeprefix(PREFIX)) not in steps:
                    self._folder.delete(name)
        except OSError as error:
            self._say(f"best weights that are not needed any more could not be deleted: {reason_of(error)}")
