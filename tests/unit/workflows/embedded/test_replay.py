"""Recorded episodes, played again without the world: the same actions get the same observations, token for token."""

import time
from dataclasses import replace

import numpy as np
import pytest

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.agent.seams import Generation, Sampling
from actors.agent.trajectory import Failure, Question, SegmentKind
from actors.model.renderer import ChatRenderer
from actors.model.tiny import build_tokenizer
from actors.search.endpoints import Endpoint
from actors.search.gateway import Gateway
from actors.search.settings import SearchSettings
from actors.search.sources import Endpoints
from actors.search.store.settings import CassetteSettings, Mode
from tests.unit.workflows.embedded.conftest import TOP_K
from workflows.embedded.lessons import corpus
from workflows.embedded.pictures import render
from workflows.embedded.questions import MixSettings, draft_questions
from workflows.embedded.teacher import StyleSettings, Teacher

LIMITS = Limits(max_total_tokens=1024, max_turn_tokens=96)
EPISODES = 25


class Sixteen:
    def n_tokens(self, ref) -> int:
        return 16


class NoWorld:
    """A provider of everything that must not be asked."""

    async def search(self, query):
        raise AssertionError("the world was asked")

    async def ground(self, image, expression):
        raise AssertionError("the world was asked")


class Forced:
    """Writes what a recorded trajectory wrote, turn by turn."""

    def __init__(self, trajectory) -> None:
        self.actions = [segment for segment in trajectory.segments if segment.kind is SegmentKind.ACTION]

    async def generate(self, segments, sampling, *, deadline) -> Generation:
        action = self.actions.pop(0)
        return Generation(action.token_ids, np.asarray(action.logprobs), action.spans, "end_of_turn")


async def play(question, generator, renderer, gateway, preset):
    return await run_episode(
        question, 0, PRESETS[preset], generator, renderer, gateway,
        sampling=Sampling(), limits=LIMITS, clock=time.monotonic,
    )  # fmt: skip


@pytest.fixture(scope="module")
def renderer(world):
    return ChatRenderer(build_tokenizer(corpus(world, 800, 0), 1024, TAGS), Sixteen())


@pytest.mark.parametrize("preset", ["compact", "compact+crops"])
async def test_recorded_trajectories_are_replayed_exactly_and_nobody_outside_is_asked(
    tmp_path, world, web, renderer, preset
):
    recording = SearchSettings(top_k=TOP_K, cassette=CassetteSettings(mode=Mode.RECORD, folder=str(tmp_path)))
    gateway, recorded = web.gateway(recording), []
    for draft in draft_questions(world, MixSettings(), "test", EPISODES, 2):
        question = Question(draft.id, draft.text, (web.images.put(render(draft.scene)),), (draft.answer,))
        teacher = Teacher(draft, world, StyleSettings(), renderer, seed=0)
        recorded.append((question, await play(question, teacher, renderer, gateway, preset)))
    await gateway.close()
    assert sum(trajectory.searches for _, trajectory in recorded) > EPISODES / 2
    crops = [call.result.crop for _, trajectory in recorded for call in trajectory.tool_calls if call.result.crop]
    assert (len(crops) > 3) == (preset == "compact+crops")

    nobody = NoWorld()
    ends = Endpoints([Endpoint("text", nobody)], [Endpoint("image", nobody)], Endpoint("ground", nobody))
    replaying = replace(recording, cassette=replace(recording.cassette, mode=Mode.REPLAY))
    gateway = Gateway(replaying, web.images, ends)
    for question, before in recorded:
        again = await play(question, Forced(before), renderer, gateway, preset)
        assert again.failure is Failure.NONE
        assert [(s.kind, list(s.token_ids)) for s in again.segments] == [
            (s.kind, list(s.token_ids)) for s in before.segments
        ]
        assert [s.images for s in again.segments] == [s.images for s in before.segments]
        assert again.evidence == before.evidence
        assert (again.answer, again.ending) == (before.answer, before.ending)
    assert gateway.totals.unrecorded == 0
    assert gateway.totals.replayed > 0
