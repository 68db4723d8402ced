"""A folder that several processes want at once, and that is made once: the first makes it, and the others wait for it.

Whose turn it is, a lock beside the folder says, which the kernel lets go of when its owner dies: what lies half-made
under the lock is that of a process that was killed, and is deleted. Where the file system has no locks each process
makes a folder of its own, and the first one's stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.errors import UserError

WAIT_S = 7200.0  # of a download of 140 GB at 20 MB/s; one that stands still ends sooner by its own deadlines
LOOK_S = 0.05  # between two tries to get the lock


def made_once(target: Path, make: Callable[[Path], None], wait_s: float = WAIT_S) -> Path:
    """`target`, filled by `make` unless it is there; whole or not there at all. Raise what `make` raises.

    `make` gets an empty folder beside it. Raise `UserError` when another process is at it for more than `wait_s`.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _turn(target, wait_s) as alone:
        if not target.is_dir():
            _make(target, make, alone)
    return target


def _make(target: Path, make: Callable[[Path], None], alone: bool) -> None:
    prefix = f".{target.name}.part-"
    if alone:
        for left in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
            shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        make(part)
        try:
            part.rename(target)
        except OSError:  # there are no locks here, and another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _turn(target: Path, wait_s: float) -> Iterator[bool]:
    """Until then no other process is within; False where the file system has no locks."""
    lock, give_up = target.with_name(f".{target.name}.lock"), time.monotonic() + wait_s
    while (held := _locked(lock)) is None:
        if time.monotonic() > give_up:
            raise UserError(
                f"Another process has been making {target} for more than {wait_s:.0f} s. End it, and start again."
            )
        time.sleep(LOOK_S)
    file, alone = held
    try:
        yield alone
    finally:
        with suppress(FileNotFoundError):  # whoever waited for it makes another
            lock.unlink()
        os.close(file)


def _locked(lock: Path) -> tuple[int, bool] | None:
    """The open file, and whether there are locks here; None while another process has it."""
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(lock)):
            return file, True
    except (BlockingIOError, FileNotFoundError):  # held, or deleted by who held it until now
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            os.close(file)
            raise
        return file, False
    os.close(file)
    return None
