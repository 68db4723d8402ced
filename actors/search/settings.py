"""Configuration of the outside world. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from actors.search.pages.settings import PageSettings
from actors.search.quota.settings import QuotaSettings
from actors.search.store.settings import CacheSettings, CassetteSettings


@dataclass(frozen=True)
class ProviderSettings:
    """One provider, named by where its class lives."""

    path: str = ""
    # "package.module:Class"; the class implements a Protocol of actors/search/seams.py
    kwargs: dict[str, Any] = field(default_factory=dict)
    # given to the class
    name: str = ""
    # in evidence and ledger; the class's name when empty
    usd_per_call: float = field(default=0.0, metadata={"ge": 0})
    # price of one answered call
    quota: QuotaSettings | None = None
    # what the provider allows and what we allow ourselves; None: neither is bounded


@dataclass(frozen=True)
class RegionSettings:
    """How a referring expression or a box becomes a crop."""

    min_score: float = field(default=0.25, metadata={"ge": 0, "le": 1})
    # detections below are ignored; Grounding DINO's own default threshold
    padding: float = field(default=0.05, metadata={"ge": 0})
    # of the box's longer side, added on each side; the papers do not say
    min_side: int = field(default=28, metadata={"ge": 1})
    # pixels; a smaller crop is grown to this. One visual token of Qwen2.5-VL
    min_box: int = field(default=4, metadata={"ge": 1})
    # pixels; a box with a shorter side is no usable region


@dataclass(frozen=True)
class RetrySettings:
    """Waiting between attempts: exponential, with jitter; a provider's Retry-After is honoured if longer."""

    retries: int = field(default=2, metadata={"ge": 0})
    # attempts after the first one
    first_wait: float = field(default=0.25, metadata={"ge": 0})
    # seconds before the second attempt, doubled for each further one
    longest_wait: float = field(default=8.0, metadata={"ge": 0})
    # seconds; also the most of a Retry-After that a call sits out

    def check(self) -> None:
        if self.retries and self.first_wait > self.longest_wait:
            raise ValueError(
                f"first_wait is {self.first_wait:g} and must be at most longest_wait, which is {self.longest_wait:g}"
            )


@dataclass(frozen=True)
class PoolSettings:
    """How many workers there are. Where `min` is `max` their number is fixed, and nobody watches them."""

    min: int = field(default=1, metadata={"ge": 1})
    # SearchWorker actors that there always are
    max: int = field(default=1, metadata={"ge": 1})
    # at most; in between, as many as the load needs that the quotas let through
    cpus: float = field(default=0.1, metadata={"ge": 0})
    # Ray CPUs reserved by one worker; it mostly waits
    per_actor: int = field(default=16, metadata={"ge": 1})
    # calls at work at a time that make a worker busy enough; it takes more
    every_s: float = field(default=1.0, metadata={"gt": 0})
    # seconds between two looks at the load
    up_after_s: float = field(default=2.0, metadata={"ge": 0})
    # seconds for which more workers must have been wanted
    down_after_s: float = field(default=30.0, metadata={"ge": 0})
    # seconds of which the busiest moment decides how many can go
    turn_every_s: float = field(default=60.0, metadata={"ge": 0})
    # seconds between two changes of direction at least
    drain_s: float = field(default=60.0, metadata={"ge": 0})
    # seconds that a worker that is to go has for the calls it has begun
    ask_cluster: bool = False
    # tell Ray's autoscaler ahead what will be needed; the hint of a cluster is one, and this one replaces others

    def check(self) -> None:
        if self.max < self.min:
            raise ValueError(f"max is {self.max} and must be at least min, which is {self.min}")

    @property
    def reserved_cpus(self) -> float:
        """Ray CPUs that the pool never gives back."""
        return self.min * self.cpus


@dataclass(frozen=True)
class SearchSettings:
    """The gateway and its worker pool."""

    text: list[ProviderSettings] = field(default_factory=list)
    # asked in order until one answers
    image: list[ProviderSettings] = field(default_factory=list)
    # asked in order until one answers
    grounder: ProviderSettings | None = None
    # None: an expression searches the whole image, and that is recorded
    readers: list[ProviderSettings] = field(default_factory=list)
    # of the pages behind text results, asked in order; none: a result is what the search engine says of it
    summarisers: list[ProviderSettings] = field(default_factory=list)
    # of what was read, asked in order; none: the sentences that bear most on the question, by BM25
    pages: PageSettings = field(default_factory=PageSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    cassette: CassetteSettings = field(default_factory=CassetteSettings)
    top_k: int = field(default=5, metadata={"ge": 1})
    # hits per call; both papers
    attempt_deadline: float = field(default=20.0, metadata={"gt": 0})
    # seconds for one request to a provider
    call_deadline: float = field(default=60.0, metadata={"gt": 0})
    # seconds for a call with all its retries, whatever its caller allows
    max_concurrency: int = field(default=64, metadata={"ge": 1})
    # requests to providers in flight, per worker
    max_query_chars: int = field(default=512, metadata={"ge": 1})
    # a longer query is the policy's error
    max_title_chars: int = field(default=200, metadata={"ge": 1})
    # of one hit
    max_text_chars: int = field(default=1200, metadata={"ge": 1})
    # of one hit; papers.md 2.3, the variants without a summariser
    ledger_rows: int = field(default=10_000, metadata={"ge": 0})
    # calls kept one by one in memory; the totals count all
    region: RegionSettings = field(default_factory=RegionSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    quota_folder: str = ""
    # address of the journals of what was spent, beside the runs that spend it; "": nothing outlives the broker
    pool: PoolSettings = field(default_factory=PoolSettings)

    def check(self) -> None:
        """Raise ValueError for times that do not fit each other, and for budgets that no request fits."""
        within = [("attempt_deadline", self.attempt_deadline)]
        if self.retry.retries:
            within.append(("retry.longest_wait", self.retry.longest_wait))
        if self.readers:
            within.append(("pages.deadline_s", self.pages.deadline_s))
        if self.cache.folder:
            within.append(("cache.rpc_s", self.cache.rpc_s))
        for name, seconds in within:
            if seconds > self.call_deadline:
                raise ValueError(f"{name} is {seconds:g} and must be at most call_deadline, {self.call_deadline:g}")
        if self.cache.folder and self.cache.wait_s <= self.call_deadline:
            raise ValueError(
                f"cache.wait_s is {self.cache.wait_s:g} and must be above call_deadline, {self.call_deadline:g}: who"
                " gives up before the call that it waits for has ended pays for it again"
            )
        for place, provider in self._places():
            if provider.quota is not None:
                self._check_quota(f"{place}.quota", provider, provider.quota)

    def _check_quota(self, place: str, provider: ProviderSettings, quota: QuotaSettings) -> None:
        if quota.lease_seconds <= self.attempt_deadline:
            raise ValueError(
                f"{place}.lease_seconds is {quota.lease_seconds:g} and must be above attempt_deadline,"
                f" {self.attempt_deadline:g}: the quota would take a request that is under way for lost"
            )
        for window, budget in (("per_day", quota.per_day), ("per_month", quota.per_month)):
            if 0 < budget.tokens < quota.tokens_per_call:
                raise ValueError(
                    f"{place}.{window}.tokens is {budget.tokens} and must be at least tokens_per_call,"
                    f" {quota.tokens_per_call}: no request would ever be sent"
                )
            if 0 < budget.usd < provider.usd_per_call:
                raise ValueError(
                    f"{place}.{window}.usd is {budget.usd:g} and must be at least usd_per_call,"
                    f" {provider.usd_per_call:g}: no request would ever be sent"
                )

    def _places(self) -> Iterator[tuple[str, ProviderSettings]]:
        """As `endpoints`, with where each is configured."""
        for name in ("text", "image", "readers", "summarisers"):
            for number, provider in enumerate(getattr(self, name)):
                yield f"{name}[{number}]", provider
        if self.grounder is not None:
            yield "grounder", self.grounder

    def endpoints(self) -> tuple[ProviderSettings, ...]:
        """Everything outside that this configuration names, in the order of the fields."""
        grounder = [self.grounder] if self.grounder else []
        return (*self.text, *self.image, *grounder, *self.readers, *self.summarisers)
