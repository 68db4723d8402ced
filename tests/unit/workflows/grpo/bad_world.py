"""Samplers, learner and storage for the controller: real coroutines that behave badly, on a clock that jumps.

Latencies, deaths and failures are drawn from a seed. The loop raises when everything waits for ever, so a hang is a
failure at once.
"""

import asyncio
import contextlib
import json
import random
import selectors
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from actors.agent.trajectory import Ending, Failure, Label, Question, Summary
from workflows.grpo.controller import Controller
from workflows.grpo.evaluation_state import EvaluationState
from workflows.grpo.ports import ControllerState, SamplerGone, SamplerLoad
from workflows.grpo.prompts_cursor import CursorState
from workflows.grpo.settings import GrpoSettings, OnlineEvaluationSettings
from workflows.grpo.work_buffer import BufferState


class Killed(BaseException):
    """The machine lost power."""


class JumpingSelector(selectors.SelectSelector):
    """Waits take no time: the clock jumps to the next timer."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.now, self.turns, self.kill_at = 0.0, 0, kill_at

    def select(self, timeout=None):
        self.turns += 1
        if self.turns == self.kill_at:
            raise Killed
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for ever"
            self.now += max(timeout, 0.0)
        return ready


def play(coroutine_of, kill_at=None):
    """Run `coroutine_of()` on a virtual clock; returns (result or None if killed, loop turns)."""
    selector = JumpingSelector(kill_at)
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    loop.set_exception_handler(lambda *_: None)
    try:
        return loop.run_until_complete(coroutine_of()), selector.turns
    except Killed:
        loop.call_soon = lambda *_, **__: None  # nothing runs any more, not even what cleans up
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
            with contextlib.suppress(RuntimeError):
                task.get_coro().close()
        return None, selector.turns
    finally:
        selector.kill_at = None
        asyncio.set_event_loop(None)
        loop.close()


@dataclass
class Luck:
    """Probabilities of what may go wrong, per episode."""

    infra: float = 0.0
    error: float = 0.0
    hang: float = 0.0
    death: float = 0.0
    data: float = 0.0
    flat: float = 0.2  # per question
    update_fails: float = 0.0


@dataclass
class World:
    seed: int = 0
    luck: Luck = field(default_factory=Luck)
    lineage: list = field(default_factory=list)  # group ids that the learner's weights have seen
    saved: list = field(default_factory=list)  # checkpoints: (state as JSON, finished groups, lineage)
    metrics: list = field(default_factory=list)
    said: list = field(default_factory=list)
    quality: list = field(default_factory=list)  # by version, how much of an evaluation is right; the last one stays
    hangs_evaluation: bool = False
    evaluating: int = 0  # greedy episodes under way
    evaluations: list = field(default_factory=list)  # metrics
    kept: list = field(default_factory=list)  # steps whose weights were kept
    begun: list = field(default_factory=list)  # ids of questions, in the order in which their episodes began

    def __post_init__(self):
        self.random = random.Random(self.seed)
        kinds = ("looking", "head", "two hops")
        self.questions = {
            f"q{i}": Question(f"q{i}", "?", kind=kinds[i % 3], designed_label=Label.REQUIRED if i % 3 else Label.FREE)
            for i in range(60)
        }
        self.held_out = {f"h{i}": Question(f"h{i}", "?", answers=("yes",), kind=kinds[i % 3]) for i in range(10)}

    def step(self, *args):
        return self._record(*args)

    async def _record(self, step, metrics, groups):
        self.metrics.append({**metrics, "step": step})

    async def evaluated(self, step, metrics):
        self.evaluations.append({**metrics, "step": step})

    async def keep(self, best):
        await asyncio.sleep(self.random.uniform(0.1, 3))
        assert self.published == best.version, "the weights to keep are not those published last"
        self.kept.append(best.step)

    def right(self, question, version):
        """Whether an evaluated episode is right: a matter of question and weights alone."""
        quality = self.quality[min(version, len(self.quality) - 1)] if self.quality else 5
        return int(question.id[1:]) < quality

    def say(self, message):
        self.said.append(message)

    # the learner
    async def train(self, groups, version):
        await asyncio.sleep(self.random.uniform(1, 5))
        assert not {g.id for g in groups} & set(self.lineage), "a group is trained on twice"
        assert not {g.question.id for g in groups} & set(self.held_out), "a held-out question is trained on"
        self.lineage += [g.id for g in groups]
        return {"loss": 0.5}

    async def publish(self, version):
        assert not self.evaluating, "published while an evaluation is under way"
        await asyncio.sleep(self.random.uniform(0.1, 0.5))
        self.published = version
        return version

    # the storage
    async def save(self, state, finished):
        lineage = list(self.lineage)
        await asyncio.sleep(self.random.uniform(0.1, 1))
        text = json.dumps(
            {
                "step": state.step,
                "version": state.version,
                "buffer": state.buffer.to_json(),
                "cursor": state.cursor.to_json(),
                "totals": dict(state.totals),
                "evaluation": state.evaluation.to_json(),
            }
        )
        self.saved.append((text, list(finished), lineage))


@dataclass
class OneSampler:
    name: str
    world: World
    version: int = -1
    dead: bool = False
    latency: float = 2.0

    async def run(self, question, index, sampling):
        self.world.begun.append(question.id)
        greedy = sampling.temperature == 0
        assert greedy == (question.id in self.world.held_out), "held out is what is evaluated, and nothing else"
        if not greedy:
            return await self.play(question, index)
        self.world.evaluating += 1
        try:
            if self.world.hangs_evaluation:
                await asyncio.Event().wait()
            return await self.play(question, index)
        finally:
            self.world.evaluating -= 1

    async def play(self, question, index):
        world, luck, chance = self.world, self.world.luck, self.world.random.random
        if self.dead:
            raise SamplerGone("was dead")
        assert self.version >= 0, "asked to sample before it had weights"
        tokens = {}
        for _ in range(world.random.randint(1, 3)):
            tokens[self.version] = tokens.get(self.version, 0) + 10
            await asyncio.sleep(world.random.expovariate(1 / self.latency))
            if self.dead:
                raise SamplerGone("died under way")
        if chance() < luck.death:
            self.dead = True
            raise SamplerGone("died")
        if chance() < luck.hang:
            await asyncio.Event().wait()
        if chance() < luck.error:
            raise ConnectionError("lost")
        failure = Failure.NONE
        if chance() < luck.infra:
            failure = Failure.INFRA
        elif chance() < luck.data:
            failure = Failure.DATA
        flat = random.Random(question.id).random() < luck.flat
        reward = 0.5 if flat else float(index % 2)
        return (
            Summary(
                question.id, index, reward, reward, Ending.ANSWERED, failure, index % 2, sum(tokens.values()), 50,
                min(tokens), max(tokens), 1.0,
                {"tokens_by_version": tokens, "answer": "yes" if world.right(question, self.version) else "no"},
            ),
            f"payload of {question.id}/{index}",
        )  # fmt: skip

    async def update(self, ticket):
        await asyncio.sleep(0.1)
        if self.dead:
            raise SamplerGone("was dead")
        if self.version >= 0 and self.world.random.random() < self.world.luck.update_fails:
            raise RuntimeError("torn publish")
        self.version = ticket

    async def cancel(self, question_id, sample_index=None):
        await asyncio.sleep(0.01)

    async def load(self):
        return SamplerLoad(in_tools=self.world.random.randint(0, 4), kv_used=self.world.random.random())

    async def healthy(self):
        return not self.dead

    async def revive(self):
        await asyncio.sleep(3)
        self.dead, self.version = False, -1


SMALL = GrpoSettings(
    steps=6, groups_per_step=3, group_size=4, max_staleness=1, samplers=2, episodes_per_sampler=20,
    checkpoint_every=2, stall_report_s=30, batch_timeout_s=2000, ready_timeout_s=60,
)  # fmt: skip
EVALUATED = replace(SMALL, evaluation=OnlineEvaluationSettings(every=2, questions=10))


def controller(world, settings, resume=False, episode_s=60, **ports):
    samplers = [OneSampler(f"s{i}", world) for i in range(settings.samplers)]
    state, finished = None, ()
    if resume and world.saved:
        text, finished, lineage = world.saved[-1]
        data = json.loads(text)
        state = ControllerState(
            data["step"], data["version"], BufferState.from_json(data["buffer"]),
            CursorState.from_json(data["cursor"]), data["totals"], EvaluationState.from_json(data["evaluation"]),
        )  # fmt: skip
        world.lineage[:] = lineage
    elif resume:
        world.lineage.clear()
    world.evaluating = 0
    held_out = world.held_out if settings.evaluation.every else {}
    return Controller(
        settings, world.questions, samplers, world, world, world, 0, state, finished, held_out, keeper=world,
        episode_s=episode_s, **ports,
    )  # fmt: skip


def check_books(c):
    b = c.buffer
    assert b.admitted == b.released + b.held
    assert b.admitted == b.trained + b.filtered.total() + b.cancelled.total() + b.held
    assert b.held <= b.slots


def run_all(world, settings, **ports):
    made = []

    async def main():
        made.append(controller(world, settings, **ports))
        return await made[0].run()

    end, _ = play(main)
    check_books(made[0])
    return end, made[0]


lucks = st.builds(
    Luck,
    infra=st.sampled_from([0.0, 0.1]),
    error=st.sampled_from([0.0, 0.1]),
    hang=st.sampled_from([0.0, 0.02]),
    death=st.sampled_from([0.0, 0.02]),
    data=st.sampled_from([0.0, 0.02]),
    flat=st.sampled_from([0.0, 0.5]),
    update_fails=st.sampled_from([0.0, 0.2]),
)
