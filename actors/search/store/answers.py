"""Answers on disk: one sqlite file in a local folder, bounded in bytes and in time.

Always true: what is found was put under the same version and is younger than its time to live; the answers together
stay within `max_bytes`, least recently used first out; and no state of the file raises. A damaged one is set aside as
`answers.damaged` and a new one begun, a full disk keeps nothing, and both are told as warnings.

Times are unix seconds that the caller gives. For one thread at a time.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from actors.search.store.records import Answer, Kind

log = logging.getLogger(__name__)
T = TypeVar("T")

FILE, ASIDE = "answers.sqlite3", "answers.damaged"
LAYOUT = 1  # of the tables; a file of another layout is begun anew
LOCKED_S = 0.2  # seconds that another process's write is waited for; nothing else is answered meanwhile
_KINDS = frozenset(kind.value for kind in Kind)
_TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, version TEXT NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL, provider TEXT NOT NULL,
    at REAL NOT NULL, cost_usd REAL NOT NULL, latency_s REAL NOT NULL, until REAL NOT NULL, used INTEGER NOT NULL,
    bytes INTEGER NOT NULL, blobs TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON answers (used);
CREATE INDEX by_end ON answers (until);
CREATE TABLE blobs (
    key TEXT NOT NULL REFERENCES answers (key) ON DELETE CASCADE, sha256 TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (key, sha256)
);
"""


@dataclass(frozen=True)
class Stored:
    """An answer and the seconds for which it may still be given."""

    answer: Answer
    seconds: float


@dataclass(frozen=True)
class Counts:
    """What the store holds, and what it let go since it was opened."""

    answers: int = 0
    bytes: int = 0
    evicted: int = 0
    expired: int = 0


class AnswerStore:
    """See the module. Opening an existing folder finds what was stored there before."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, version: str = "") -> None:
        self._folder, self._max_bytes, self._version = Path(folder), max_bytes, version
        self._folder.mkdir(parents=True, exist_ok=True)
        self._answers = self._bytes = self._evicted = self._expired = self._uses = 0
        self._file: sqlite3.Connection | None = None
        self._told = False
        self._guarded(lambda file: None, None)

    # --- the calls ------------------------------------------------------------------------------------------

    def get(self, key: str, now: float) -> Stored | None:
        """The answer to `key`, None when there is none that may be given at `now`."""
        return self._guarded(lambda file: self._get(file, key, now), None)

    def put(self, key: str, answer: Answer, now: float, ttl_s: float) -> bool:
        """Keep `answer` until `now + ttl_s`, in the place of an older one. False when it could not be kept."""
        if answer.size > self._max_bytes:
            return False
        return self._guarded(lambda file: self._put(file, key, answer, now, ttl_s), False)

    @property
    def counts(self) -> Counts:
        return Counts(self._answers, self._bytes, self._evicted, self._expired)

    def close(self) -> None:
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
            self._file = None

    # --- inside one transaction -----------------------------------------------------------------------------

    def _get(self, file: sqlite3.Connection, key: str, now: float) -> Stored | None:
        row = file.execute(
            "SELECT kind, body, provider, at, cost_usd, latency_s, until, blobs FROM answers"
            " WHERE key = ? AND version = ? AND until > ?",
            (key, self._version, now),
        ).fetchone()
        if row is None:
            return None
        kind, body, provider, at, cost_usd, latency_s, until, names = row
        blobs = dict(file.execute("SELECT sha256, data FROM blobs WHERE key = ?", (key,)).fetchall())
        if kind not in _KINDS or json.dumps(sorted(blobs)) != names:
            raise sqlite3.DatabaseError("an answer is not as it was written")
        file.execute("UPDATE answers SET used = ? WHERE key = ?", (self._next_use(), key))
        return Stored(Answer(Kind(kind), body, blobs, provider, at, cost_usd, latency_s), until - now)

    def _put(self, file: sqlite3.Connection, key: str, answer: Answer, now: float, ttl_s: float) -> bool:
        self._expired += self._delete(file, "key IN (SELECT key FROM answers WHERE until <= ?)", now)
        self._delete(file, "key = ?", key)
        file.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, self._version, answer.kind.value, answer.body, answer.provider),
                *(answer.at, answer.cost_usd, answer.latency_s, now + ttl_s, self._next_use()),
                *(answer.size, json.dumps(sorted(answer.blobs))),
            ),
        )
        file.executemany("INSERT INTO blobs VALUES (?, ?, ?)", [(key, *blob) for blob in answer.blobs.items()])
        self._answers, self._bytes = self._answers + 1, self._bytes + answer.size
        while self._bytes > self._max_bytes:
            self._evicted += self._delete(file, "key = (SELECT key FROM answers ORDER BY used LIMIT 1)")
        return True

    def _delete(self, file: sqlite3.Connection, which: str, *values: object) -> int:
        """Deletes answers and returns how many; the counts follow."""
        sizes = [size for (size,) in file.execute(f"DELETE FROM answers WHERE {which} RETURNING bytes", values)]
        self._answers, self._bytes = self._answers - len(sizes), self._bytes - sum(sizes)
        return len(sizes)

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses

    # --- the file -------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What `work` returns within a transaction; `otherwise` when the file or the disk does not let it."""
        try:
            file = self._file or self._open()
            with file:
                file.execute("BEGIN IMMEDIATE")
                outcome = work(file)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if type(error) is sqlite3.DatabaseError:  # no database, or torn pages
                self._warn(f"are damaged and set aside as {ASIDE}", error)
                self._set_aside()
            else:  # locked by another process, full disk, read-only; or an answer that sqlite does not take
                self._warn("cannot be used now", error)
                self.close()  # opened anew by the next call, and the counts with it
            return otherwise
        self._told = False
        return outcome

    def _warn(self, what: str, error: Exception) -> None:
        """Once until it works again: a full disk meets every call."""
        if not self._told:
            log.warning("the answers in %s %s: %s", self._folder, what, error)
        self._told = True

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._folder / FILE, timeout=LOCKED_S, isolation_level=None, check_same_thread=False)
        try:
            file.execute("PRAGMA foreign_keys = ON")
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, a power cut the last moments
            tables = file.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('answers', 'blobs')").fetchone()
            if (*file.execute("PRAGMA user_version").fetchone(), *tables) != (LAYOUT, 2):
                self._begin(file)
            self._answers, self._bytes, self._uses = file.execute(
                "SELECT count(*), coalesce(sum(bytes), 0), coalesce(max(used), 0) FROM answers"
            ).fetchone()
        except BaseException:
            file.close()
            raise
        self._file = file
        return file

    @staticmethod
    def _begin(file: sqlite3.Connection) -> None:
        file.executescript(
            f"BEGIN IMMEDIATE; DROP TABLE IF EXISTS blobs; DROP TABLE IF EXISTS answers; {_TABLES}"
            f"PRAGMA user_version = {LAYOUT}; COMMIT;"
        )

    def _set_aside(self) -> None:
        self.close()
        self._answers = self._bytes = 0
        with suppress(OSError):
            os.replace(self._folder / FILE, self._folder / ASIDE)
        for rest in ("-wal", "-shm"):
            (self._folder / f"{FILE}{rest}").unlink(missing_ok=True)
