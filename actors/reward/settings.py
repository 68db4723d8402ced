"""Configuration of the reward, and of a judge of answers. Imports nothing heavy.

    reward = (1 - a) * accuracy * penalty(searches) + a * format          a: format_weight

Both papers' rewards are this one function (papers.md section 5: MMSearch-R1 equation 1, DeepMMSearch-R1 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from actors.search.quota.settings import QuotaSettings


class Matching(StrEnum):
    """How an answer is held against the gold answers; the best of them counts."""

    EXACT = "exact"
    CONTAINS = "contains"  # "SubEM": the gold answer occurs in the answer, word for word
    F1 = "f1"  # of tokens


class PenaltyPer(StrEnum):
    """What the search penalty is applied for."""

    EPISODE = "episode"  # once, if anything was searched: the paper's
    CALL = "call"  # for each search: `use_search_count_penalty` in MMSearch-R1's code


class RewardPreset(StrEnum):
    MMSEARCH_R1 = "mmsearch_r1"
    DEEPMMSEARCH_R1 = "deepmmsearch_r1"


@dataclass(frozen=True)
class RewardRule:
    """The numbers of the formula."""

    format_weight: float
    search_penalty: float  # accuracy is multiplied by 1 - search_penalty
    penalty_per: PenaltyPer
    matching: Matching
    function: str = ""  # what makes a total of its own from the parts; "" for the formula's


RULES = {
    RewardPreset.MMSEARCH_R1: RewardRule(0.1, 0.1, PenaltyPer.EPISODE, Matching.EXACT),
    RewardPreset.DEEPMMSEARCH_R1: RewardRule(0.1, 0.0, PenaltyPer.EPISODE, Matching.EXACT),
}


@dataclass(frozen=True)
class RewardSettings:
    """A preset, and what of it is to be different."""

    preset: RewardPreset = RewardPreset.MMSEARCH_R1
    # whose reward
    format_weight: float | None = field(default=None, metadata={"ge": 0, "le": 1})
    # None: the preset's, 0.1 in both papers
    search_penalty: float | None = field(default=None, metadata={"ge": 0, "le": 1})
    # None: the preset's, 0.1 in MMSearch-R1 and 0 in DeepMMSearch-R1
    penalty_per: PenaltyPer | None = None
    # None: the preset's, once per episode
    matching: Matching | None = None
    # None: the preset's, exact match in place of DeepMMSearch-R1's judge
    function: str | None = None
    # "package.module:function", given (question, trajectory, parts): its value is the reward in place of the formula's
    evaluators: int = field(default=1, metadata={"ge": 1})
    # RewardEvaluator actors
    evaluator_cpus: float = field(default=0.1, metadata={"ge": 0})
    # Ray CPUs reserved by one evaluator
    timeout: float = field(default=60.0, metadata={"gt": 0})
    # seconds for one score, retries on other evaluators included

    def rule(self) -> RewardRule:
        """The preset with the changes."""
        names = ("format_weight", "search_penalty", "penalty_per", "matching", "function")
        changed = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(RULES[self.preset], **changed)


class JudgePrompt(StrEnum):
    """Whose rules a judge follows; actors/reward/judge_rules.py."""

    MMSEARCH_R1 = "mmsearch_r1"  # sees the pictures
    DEEPMMSEARCH_R1 = "deepmmsearch_r1"  # text alone


@dataclass(frozen=True)
class JudgeSettings:
    """A model that says whether answers are right; actors/reward/judge.py."""

    model: str | None = None
    # its name at the endpoint; None: nothing is judged, and nothing leaves the machine
    base_url: str | None = None
    # any OpenAI-compatible endpoint; None: the environment's OPENAI_BASE_URL, else the openai package's own
    api_key_env: str = "OPENAI_API_KEY"
    # name of the environment variable that holds the key; "": the endpoint wants none
    prompt: JudgePrompt = JudgePrompt.MMSEARCH_R1
    # mmsearch_r1 sends the pictures too; deepmmsearch_r1 sends text alone
    concurrency: int = field(default=8, metadata={"ge": 1})
    # verdicts asked for at a time
    timeout_s: float = field(default=60.0, metadata={"gt": 0})
    # of one request
    retries: int = field(default=3, metadata={"ge": 0})
    # further requests for one verdict, after 408, 425, 429, 5xx and broken connections
    name: str = "judge"
    # of its quota broker and journal; providers that share an endpoint and a key share a quota by sharing a name
    quota: QuotaSettings | None = None
    # what the endpoint allows and what we allow ourselves, in requests and tokens; None: neither is bounded

    def check(self) -> None:
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {self.base_url!r} and must begin with http:// or https://")
        if not self.name:
            raise ValueError("name must not be empty")
        if self.quota is None:
            return
        if self.quota.per_day.usd or self.quota.per_month.usd:
            raise ValueError("quota bounds usd, but no price of a judge's tokens is known: bound tokens instead")
        if self.quota.lease_seconds <= self.timeout_s:
            raise ValueError(
                f"quota.lease_seconds is {self.quota.lease_seconds:g} and must be above timeout_s,"
                f" which is {self.timeout_s:g}: a lease that ends before its request loses count of the tokens"
            )
