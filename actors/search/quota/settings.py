"""What an endpoint allows and what we are willing to spend on it. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BudgetSettings:
    """The most that may be spent in one window of time, in UTC; 0: no bound."""

    requests: int = field(default=0, metadata={"ge": 0})
    # that were sent, also those that failed
    tokens: int = field(default=0, metadata={"ge": 0})
    # in and out, as the provider counts them
    usd: float = field(default=0.0, metadata={"ge": 0})
    # by the price table of the configuration, or as the adapter told


@dataclass(frozen=True)
class QuotaSettings:
    """One endpoint with one key."""

    per_second: float = field(default=0.0, metadata={"ge": 0})
    # requests per second that the provider allows in the long run; 0: no limit is known
    burst: int = field(default=1, metadata={"ge": 1})
    # requests that it allows at once after a pause
    concurrency: int = field(default=0, metadata={"ge": 0})
    # requests in flight, over all workers, jobs and services; 0: no bound
    per_day: BudgetSettings = field(default_factory=BudgetSettings)
    # from midnight to midnight, UTC
    per_month: BudgetSettings = field(default_factory=BudgetSettings)
    # calendar month, UTC
    tokens_per_call: int = field(default=0, metadata={"ge": 0})
    # set aside for a request until it is known what it used
    jitter: float = field(default=0.05, metadata={"ge": 0, "le": 10})
    # seconds by which requests may bunch up between our grant and the provider's gate
    lease_seconds: float = field(default=120.0, metadata={"gt": 0})
    # a lease that nobody settles is taken for spent after this long, and its slot is free again
    failures_to_open: int = field(default=5, metadata={"ge": 1})
    # failures in a row that open the circuit
    open_seconds: float = field(default=5.0, metadata={"gt": 0})
    # until the first probe; doubled with each probe that fails
    longest_open: float = field(default=300.0, metadata={"gt": 0})
    # seconds between probes at most; also for a bad key and for a spent credit
    journal_block: int = field(default=64, metadata={"ge": 1})
    # requests claimed in the journal at once: the most that a crash can make look spent though it was not
