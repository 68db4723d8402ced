"""Every question gets one trajectory; what the infrastructure spoilt is played again, elsewhere, and then counted."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Question, Trajectory
from actors.weights.manifest import TornPublish, verify
from actors.weights.transport import FolderTransport
from workflows.evaluate.play import ArmSampler, play_arm, ticket_of
from workflows.grpo.ports import SamplerGone

QUESTIONS = [Question(f"q{i}", "who?") for i in range(6)]


def ended(question, sample=0, failure=Failure.NONE):
    return Trajectory(question.id, sample, (), (), Ending.FAILED if failure else Ending.ANSWERED, failure)


class Player:
    """A sampler that fails the first `spoils` times in the given way, and remembers how many play at once."""

    def __init__(self, spoils=0, how: type[Exception] | Failure = SamplerGone):
        self.spoils, self.how = spoils, how
        self.playing = self.most = self.played = 0

    async def play(self, question, sample, sampling, policy):
        self.playing, self.played = self.playing + 1, self.played + 1
        self.most = max(self.most, self.playing)
        await asyncio.sleep(0)
        self.playing -= 1
        if self.played <= self.spoils:
            if isinstance(self.how, Failure):
                return ended(question, sample, self.how)
            raise self.how("it died")
        return ended(question, sample)


async def play(samplers, retries=2, samples=1, concurrency=4):
    told = []
    played = await play_arm(
        samplers, QUESTIONS, None, Sampling(), samples=samples, concurrency=concurrency, retries=retries,
        timeout_s=60, told=lambda: told.append(1),
    )  # fmt: skip
    assert len(told) == len(played)
    return played


async def test_questions_come_back_in_order_and_no_more_are_played_than_may_be():
    samplers = [Player(), Player()]
    played = await play(samplers, samples=2, concurrency=2)
    expected = [(f"q{i}", sample) for sample in range(2) for i in range(6)]
    assert [(one.trajectory.question_id, one.trajectory.sample_index) for one in played] == expected
    assert [one.attempts for one in played] == [1] * 12
    assert max(player.most for player in samplers) <= 2
    assert all(player.played == 6 for player in samplers)


@pytest.mark.parametrize("how", [SamplerGone, TimeoutError, Failure.INFRA])
async def test_what_the_infrastructure_spoilt_is_played_again_on_the_next_sampler(how):
    broken, whole = Player(spoils=99, how=how), Player()
    played = await play([broken, whole])
    assert all(one.trajectory.failure is Failure.NONE for one in played)
    assert [one.attempts for one in played] == [2, 1, 2, 1, 2, 1]


async def test_what_stays_spoilt_is_a_failure_of_the_infrastructure_and_not_an_answer():
    played = await play([Player(spoils=99)], retries=1)
    assert {(one.trajectory.failure, one.attempts) for one in played} == {(Failure.INFRA, 2)}
    assert all("it died" in one.trajectory.problem for one in played)


async def test_a_question_with_bad_data_is_not_played_again():
    player = Player(spoils=99, how=Failure.DATA)
    played = await play([player])
    assert {one.attempts for one in played} == {1}


class Replaceable(ArmSampler):
    """An ArmSampler whose process is a counter: it dies in its first life while everybody plays."""

    def __init__(self):
        super().__init__("s", lambda: None, retry_s=60)
        self.lives, self.loaded = 0, []

    async def revive(self):
        self.lives += 1

    async def update(self, ticket):
        self.loaded.append((self.lives, ticket))

    async def play(self, question, sample, sampling, policy):
        life = self._life
        await asyncio.sleep(0)
        if not self.lives:
            await self._replace(life)
            raise SamplerGone("it died")
        return ended(question, sample)


async def test_a_dead_sampler_is_replaced_once_and_given_the_weights_of_its_arm():
    sampler = Replaceable()
    await sampler.set_weights("weights")  # type: ignore[arg-type]
    played = await play([sampler], concurrency=6)
    assert all(one.trajectory.failure is Failure.NONE for one in played)
    assert (sampler.lives, sampler.loaded) == (1, [(0, "weights"), (1, "weights")])


def folder_with_weights(root: Path) -> Path:
    torch = pytest.importorskip("torch")
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    return Path(FolderTransport(root).send(1, weights.items()).folder)


def test_a_ticket_of_a_model_folder_is_one_that_receivers_accept(tmp_path):
    ticket = ticket_of(folder_with_weights(tmp_path), 5)
    verify(ticket, {"a": (2, 3), "b": (4,)})
    assert (ticket.version, ticket.parameters) == (5, 10)


def test_a_ticket_of_a_truncated_folder_is_refused(tmp_path):
    folder = folder_with_weights(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(TornPublish):
        ticket_of(folder, 5)


def test_weights_that_change_after_their_ticket_are_noticed(tmp_path):
    folder = folder_with_weights(tmp_path)
    ticket = ticket_of(folder, 5)
    file = folder / "model.safetensors"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[-1] ^= 1
    file.write_bytes(data.tobytes())
    with pytest.raises(TornPublish):
        verify(ticket)
