"""Where weights that were fetched lie for as long as a process needs them; its kernel says when it has died.

Each process has a folder of its own, with a file that it holds locked. Whoever makes the next one deletes those whose
file nobody holds any more: a process that is killed cannot clean up after itself, and shared memory is not freed by
its end.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from actors.weights.transport import FolderTransport, default_root

_ALIVE = "alive"  # a file that the owner of a landing folder holds locked
_YOUNG_S = 60.0  # a folder without the lock may still be in the making


class Landing:
    """A folder of this process for the newest version it fetched. Those of processes that were killed are deleted."""

    def __init__(self, base: Path | None = None) -> None:
        """Below `base`: shared memory when not given."""
        base, prefix = base or default_root("x").parent, f"mmsearch-landed-{os.getuid()}-"
        for left in base.glob(f"{prefix}*"):
            _delete_orphan(left)
        self.root = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        self._alive = os.open(self.root / _ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self.transport = FolderTransport(self.root, keep=1)

    def close(self) -> None:
        self.transport.close()
        os.close(self._alive)
        shutil.rmtree(self.root, ignore_errors=True)


def _delete_orphan(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < _YOUNG_S:
            return
        alive = os.open(folder / _ALIVE, os.O_RDWR)
    except OSError:  # another process deletes it, too
        return
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(alive)
