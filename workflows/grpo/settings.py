"""What a GRPO run is asked to do. Imports nothing heavy: a configuration error answers in under a second."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cluster.storage import check_inside

AT_LEAST_ONE = {"ge": 1}
NOT_NEGATIVE = {"ge": 0}
SECONDS = {"gt": 0.0}
MOST_EPISODES = 512  # of one sampler, where nothing else is given: a turn must not wait for long to be sampled


@dataclass(frozen=True)
class OnlineEvaluationSettings:
    """A fixed set of questions that is asked again and again while the policy learns from the others.

    They are held out of the training questions, so the test split stays unseen. Greedy, same tools, same bounds.
    """

    every: int = field(default=0, metadata=NOT_NEGATIVE)
    # steps from one evaluation to the next; the last step is evaluated too; 0: off, and nothing is held out
    questions: int = field(default=60, metadata=AT_LEAST_ONE)
    # held out, of each kind in proportion
    at_start: bool = True
    # evaluate the model that the run starts from, too
    metric: Literal["exact_match", "reward"] = "exact_match"
    # what is best is decided by
    best: bool = True
    # keep the weights of the best version in grpo/best
    patience: int = field(default=0, metadata=NOT_NEGATIVE)
    # evaluations without improvement that end the run; 0: never
    min_delta: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # what counts as an improvement for patience: more than this above the last one
    timeout_s: float = field(default=300.0, metadata=SECONDS)
    # one evaluation; what is not played by then is given up, so that the next weights can be published


@dataclass(frozen=True)
class AdmissionSettings:
    """When a free slot stays free, because the episodes of a further group would only be parked.

    The groups of the next step always begin, also while a batch trains; without pressure all others do, too.
    """

    quota_wait_s: float = field(default=30.0, metadata=NOT_NEGATIVE)
    # seconds that an episode may be expected to wait for leases of search providers; 0: quotas hold nothing back
    kv_used: float = field(default=0.95, metadata={"gt": 0.0, "le": 1.0})
    # share of its KV cache beyond which a sampler is full; while all are, nothing beyond the next step begins


@dataclass(frozen=True)
class GrpoSettings:
    """One run of asynchronous GRPO.

    Defaults are those of the embedded scale; a 7B run overrides sizes and times.
    """

    start_from: str | None = None
    # model folder, local or s3://; the run's SFT export when not given
    questions: str | None = None
    # folder of Parquet shards, local or s3://; the run's training questions when not given
    search_free: float | None = field(default=None, metadata={"ge": 0.0, "le": 1.0})
    # share of search-free questions among them, others left out; as the dataset has it when not given
    folder: str = "grpo"
    # in the run's folder; another name keeps several trainings of one run apart

    steps: int = field(default=120, metadata=AT_LEAST_ONE)
    # optimiser steps (= published versions) of the whole run, resumed parts included
    groups_per_step: int = field(default=16, metadata=AT_LEAST_ONE)
    # questions that one step learns from; with group_size the batch of architecture section 7
    group_size: int = field(default=8, metadata=AT_LEAST_ONE)
    # episodes per question; both papers use 8
    max_staleness: int = field(default=1, metadata=NOT_NEGATIVE)
    # versions between sampling and training, at most; 0 is synchronous training
    window: int | None = None
    # positions within which a finished group may overtake; empty: 0.3 of the slots

    temperature: float = field(default=1.0, metadata={"gt": 0.0})
    # of sampling; the learner divides its logits by the same
    top_p: float = field(default=1.0, metadata={"gt": 0.0, "le": 1.0})
    # below 1 the importance ratios are biased (TRL #6789), so leave it
    max_tokens: int = field(default=128, metadata=AT_LEAST_ONE)
    # of one turn

    filter_zero_variance: bool = True
    # drop groups whose episodes all scored alike (DAPO's dynamic sampling) and admit others instead; False: the learner
    # learns from them, too (learner.flat_groups)
    refill_limit: float = field(default=4.0, metadata=NOT_NEGATIVE)
    # groups filtered per step, in steps' worth; beyond it flat groups are kept, so that a step always ends
    min_siblings: int = field(default=2, metadata=AT_LEAST_ONE)
    # valid episodes that a group needs; below it the group is cancelled and its question asked again later

    samplers: int = field(default=1, metadata=AT_LEAST_ONE)
    # vLLM engines that the run begins with, and replaces when they die
    max_samplers: int | None = field(default=None, metadata=AT_LEAST_ONE)
    # when nodes join the cluster the run grows to so many, and shrinks when they leave; empty: as many as `samplers`
    episodes_per_sampler: int | None = field(default=None, metadata=AT_LEAST_ONE)
    # concurrent episodes of one engine, at most; more than it samples at once, since some wait for tools. Empty: its
    # share of all that may be under way, up to 512
    adaptive_concurrency: bool = True
    # fewer while its KV cache is full, more again while that makes it faster; False: always as many as there are
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    # whether a free slot is used at once
    sampler_cpus: float = field(default=0.5, metadata={"gt": 0.0})
    # Ray CPUs reserved by one sampler
    sampler_gpus: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # GPUs of one sampler, all on one node: its engine's tensor_parallel_size
    sampler_labels: dict[str, str] = field(default_factory=dict)
    # of the nodes that samplers may be placed on, by Ray's label selectors; empty: any node
    ranks: int = field(default=1, metadata=AT_LEAST_ONE)
    # learner processes
    learner_cpus: float = field(default=1.0, metadata={"gt": 0.0})
    # Ray CPUs reserved by one rank
    learner_gpus: float = field(default=0.0, metadata=NOT_NEGATIVE)
    # GPUs of one rank

    episode_retries: int = field(default=2, metadata=NOT_NEGATIVE)
    # times an episode is reissued, on another sampler where there is one, after a failure of the
    # infrastructure
    question_retries: int = field(default=2, metadata=NOT_NEGATIVE)
    # times a question is asked again after its group was cancelled for the infrastructure's sake
    train_timeout_s: float = field(default=900.0, metadata=SECONDS)
    # one optimiser step; the first one compiles
    publish_timeout_s: float = field(default=120.0, metadata=SECONDS)
    # writing the weights, and again each sampler's loading of them
    checkpoint_timeout_s: float = field(default=600.0, metadata=SECONDS)
    # saving everything; writing down a step; reading the learner's checkpoint; exporting the model
    ready_timeout_s: float = field(default=600.0, metadata=SECONDS)
    # start of all actors, and of one that is replaced
    batch_timeout_s: float = field(default=900.0, metadata=SECONDS)
    # the learner's wait for a batch; beyond it the run stops with a report
    stall_report_s: float = field(default=60.0, metadata=SECONDS)
    # without any progress for this long, who waits for whom is printed
    probe_every_s: float = field(default=10.0, metadata=SECONDS)
    # health checks of samplers
    probe_timeout_s: float = field(default=40.0, metadata=SECONDS)
    # a sampler that does not answer its check for so long hangs, and is replaced; more than engine.answer_timeout_s

    checkpoint_every: int = field(default=20, metadata=AT_LEAST_ONE)
    # steps; a checkpoint is also made when the run stops
    keep_checkpoints: int = field(default=2, metadata=AT_LEAST_ONE)
    # newest ones that stay on storage
    start_check_questions: int = field(default=8, metadata=NOT_NEGATIVE)
    # per kind of question before the first step; 0 skips the check
    trajectories_per_step: int = field(default=8, metadata=NOT_NEGATIVE)
    # kept in trajectories/*.parquet, for people

    evaluation: OnlineEvaluationSettings = field(default_factory=OnlineEvaluationSettings)
    # while training goes on
    export: Literal["last", "best"] = "last"
    # which weights grpo/export gets; the best of many evaluations on few questions is better than it is, so ask for it

    def check(self) -> None:
        """Raise ValueError for values that do not fit each other."""
        check_inside("folder", self.folder)
        if self.min_siblings > self.group_size:
            raise ValueError(f"min_siblings must be at most group_size={self.group_size}, not {self.min_siblings}")
        if self.max_samplers is not None and self.max_samplers < self.samplers:
            raise ValueError(f"max_samplers must be at least samplers={self.samplers}, not {self.max_samplers}")
        if self.window is not None and not 1 <= self.window <= self.slots:
            raise ValueError(f"window must be between 1 and the {self.slots} slots, not {self.window}")
        if self.export == "best" and not (self.evaluation.every and self.evaluation.best):
            raise ValueError("export=best needs evaluation.every of at least 1, and evaluation.best")

    @property
    def slots(self) -> int:
        """Groups that may be anywhere in the pipeline."""
        return (self.max_staleness + 1) * self.groups_per_step

    @property
    def most_per_sampler(self) -> int:
        """Concurrent episodes of one engine, at most."""
        share = math.ceil(self.slots * self.group_size / self.samplers)
        return self.episodes_per_sampler or max(min(share, MOST_EPISODES), self.group_size)
