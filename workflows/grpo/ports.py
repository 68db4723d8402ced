"""What the controller asks of the others, as Protocols: Ray actors in a run, plain coroutines in its tests.

A *payload* stands for a finished trajectory without being it (an object reference in a run), so that the
controller holds summaries alone. Every method may raise; the controller sets the deadlines, so none of them
needs one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.agent.seams import Sampling
from actors.agent.trajectory import Question, Summary
from actors.search.load import LoadSample
from cluster.errors import RunBroken
from workflows.grpo.evaluation_state import Best, EvaluationState
from workflows.grpo.prompts_cursor import CursorState
from workflows.grpo.work_buffer import BufferState, GroupId

Payload = Any
Ticket = Any


class SamplerGone(RuntimeError):
    """The sampler's process is dead: nothing it was asked will be answered."""


class LearnerGone(RunBroken):
    """A process of the learner is dead: what it knew beyond the newest checkpoint is lost."""


class BudgetSpent(RuntimeError):
    """A paid or limited resource is used up: the run stops at a checkpoint, for a person to decide."""


@dataclass(frozen=True)
class SamplerLoad:
    """What one engine has to do at a moment."""

    in_tools: int = 0  # episodes that wait for a tool
    waiting: int = 0  # requests that wait for a place in the engine, or for their prefill
    kv_used: float = 0.0  # share of the KV cache, at most since last asked; 0 where the engine does not tell
    preempted: int = 0  # requests since the engine started whose KV was thrown out for others
    sampled_tokens: int = 0  # since the engine started
    prefix_hits: int = 0  # prompt tokens found in the prefix cache since the engine started
    prefix_asked: int = 0  # and those looked up there


class Sampler(Protocol):
    """One engine that runs whole episodes."""

    name: str

    async def run(self, question: Question, sample_index: int, sampling: Sampling) -> tuple[Summary, Payload]:
        """One episode. Raise `SamplerGone` when the process died, `BudgetSpent` when a budget ended."""
        ...

    async def update(self, ticket: Ticket) -> None:
        """Run the weights of `ticket` from the next token on; episodes under way continue.

        Raise `actors.weights.manifest.WeightsMissed` when only the next ones can be had: it is well, and waits.
        """
        ...

    async def cancel(self, question_id: str, sample_index: int | None = None) -> None:
        """Abort the episode of a question that has this index, or all of them; `run` may then fail or never answer."""
        ...

    async def healthy(self) -> bool:
        """Whether it can be given work."""
        ...

    async def load(self) -> SamplerLoad:
        """What it has to do at present."""
        ...

    async def revive(self) -> None:
        """Replace a dead or hung process; returns when it can take `update`."""
        ...


class Recruiter(Protocol):
    """Where further samplers come from."""

    async def recruit(self) -> Sampler:
        """Another sampler that can take `update`, as soon as there is room for one.

        That may be never: who asks may cancel, and then nothing of it is left. Raise when it could not be started.
        """
        ...

    async def dismiss(self, sampler: Sampler) -> None:
        """End one that has left, however it is doing."""
        ...


class Tools(Protocol):
    """The search workers, as far as scheduling needs to know them."""

    async def load(self) -> LoadSample:
        """What keeps them busy now, all together."""
        ...


@dataclass(frozen=True)
class GroupResult:
    """A finished group as the controller knows it.

    Valid siblings only, `payloads[i]` belongs to `summaries[i]`.
    """

    id: GroupId
    question: Question
    admitted_at: int  # version
    summaries: tuple[Summary, ...]
    payloads: tuple[Payload, ...]
    masked: int = 0  # siblings lost to the infrastructure

    @property
    def oldest_version(self) -> int:
        """Of the oldest token that will be trained on; that of the admission where nothing was sampled."""
        return min((s.oldest_version for s in self.summaries if s.sampled_tokens), default=self.admitted_at)

    @property
    def flat(self) -> bool:
        """Whether all siblings scored alike, so that every advantage is 0."""
        rewards = [s.reward for s in self.summaries]
        return max(rewards) - min(rewards) < 1e-6

    @property
    def tokens(self) -> int:
        return sum(s.sampled_tokens for s in self.summaries)


class Learner(Protocol):
    """All ranks of the policy learner."""

    async def train(self, groups: Sequence[GroupResult], version: int) -> Mapping[str, float]:
        """One optimiser step from weights `version` to `version + 1`; returns its statistics."""
        ...

    async def publish(self, version: int) -> Ticket:
        """Write the present weights out as `version`."""
        ...


@dataclass(frozen=True)
class ControllerState:
    """What a checkpoint holds of the controller, between two steps.

    `version` counts steps: both advance together.
    """

    step: int
    version: int
    buffer: BufferState
    cursor: CursorState
    totals: Mapping[str, float]
    evaluation: EvaluationState = field(default_factory=EvaluationState)


class Saver(Protocol):
    """Where checkpoints go."""

    async def save(self, state: ControllerState, finished: Sequence[GroupResult]) -> None:
        """Keep the learner's state, the controller's, and the payloads of the finished groups, all or nothing."""
        ...


class Keeper(Protocol):
    """Where the best weights go."""

    async def keep(self, best: Best) -> None:
        """Keep the weights that were published last, which are `best.version`; what was kept before stays as well."""
        ...


class Recorder(Protocol):
    """What people see of a run."""

    async def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupResult]) -> None:
        """After each step, with the groups that were trained on."""
        ...

    async def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each evaluation; may come while the next step is under way."""
        ...

    def say(self, message: str) -> None:
        """Something that a person should know now."""
        ...
