"""Configuration of the shared cache and of the cassette. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """What is asked of the world, and what of the cassette; `cassette.move` has the rule."""

    LIVE = "live"
    RECORD = "record"
    REPLAY = "replay"
    REPLAY_OR_LIVE = "replay_or_live"


@dataclass(frozen=True)
class CacheSettings:
    """Answers that all workers share."""

    folder: str = ""
    # local directory that survives restarts; empty: every worker remembers for itself and nothing survives
    entries: int = field(default=10_000, metadata={"ge": 0})
    # answers kept in memory per worker, least recently used first out; 0: none
    max_mib: float = field(default=1024.0, metadata={"gt": 0})
    # of answers and thumbnails in the folder, least recently used first out
    ttl_s: float = field(default=7 * 86_400.0, metadata={"gt": 0})
    # seconds for which an answer is given again; a week, since the web moves slowly against a run
    negative_ttl_s: float = field(default=300.0, metadata={"gt": 0})
    # the same for "nothing found", which is often an index that was not ready
    version: str = ""
    # another one finds none of the answers that were kept under this one
    claim_s: float = field(default=10.0, metadata={"gt": 0})
    # seconds of silence after which the worker that asks for all is taken for dead and the next one asks
    wait_s: float = field(default=75.0, metadata={"gt": 0})
    # seconds that a worker waits for another one's answer before it asks itself; above search.call_deadline
    rpc_s: float = field(default=5.0, metadata={"gt": 0})
    # seconds for one message to the cache; a silent cache is done without
    detached: bool = False
    # the cache outlives the run that started it, for the next run on the same cluster

    def check(self) -> None:
        if self.wait_s <= self.claim_s:
            raise ValueError(f"wait_s is {self.wait_s:g} and must be above claim_s, which is {self.claim_s:g}")


@dataclass(frozen=True)
class CassetteSettings:
    """Recorded calls."""

    mode: Mode = Mode.LIVE
    # live: no cassette; record: replay what is known, ask and record what is not; replay: never ask;
    # replay_or_live: replay what is known, ask what is not
    folder: str = ""
    # local path or s3://bucket/prefix
    rows_per_part: int = field(default=1000, metadata={"ge": 1})
    # recordings in one Parquet file at most
    flush_s: float = field(default=30.0, metadata={"gt": 0})
    # seconds between two writes; what a killed worker has not yet written is lost

    def check(self) -> None:
        if self.mode is not Mode.LIVE and not self.folder:
            raise ValueError(f"mode {self.mode} needs a folder")
