"""A row is played, ends in one way, and is on storage before it counts."""

import asyncio

import pytest

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS
from actors.agent.seams import GenerationFailed
from actors.agent.trajectory import Outcome, ToolResult
from cluster.storage import Folder
from tests.unit.actors.agent.stage import Letters, Script, Tools, ask, found, say
from tests.unit.workflows.predict.asked import asked, picture
from workflows.predict.parts import Parts, PartWriter
from workflows.predict.pictures import PictureReader
from workflows.predict.player import EngineBroken, Player, Rules
from workflows.serve.memory_images import MemoryImages

NO_PICTURE = {"bytes": None, "where": None, "sha256": None, "width": None, "height": None}


class Engine(Script):
    """A scripted policy that can be mended."""

    def __init__(self, *lines, broken=False):
        super().__init__(*lines)
        self.mended, self.broken = 0, broken

    async def mend(self):
        self.mended += 1
        if self.broken:
            raise EngineBroken("the engine died 4 times")


class Drawn(Letters):
    """A renderer that knows pictures of any size."""


class Stage:
    def __init__(self, folder, *lines, tools=None, retries=2, broken=False, concurrency=4, parts=None):
        self.engine, self.waited = Engine(*lines, broken=broken), []
        self.images = MemoryImages(1 << 20)
        self.folder = Folder(folder)
        rules = Rules(PRESETS["extended"], Limits(), 0.0, 8, concurrency, retries, "weights")
        pictures = PictureReader(Folder(folder), self.images, None)
        parts = parts or PartWriter(self.folder, 0.0)
        self.player = Player(
            rules, self.engine, Drawn(), tools or Tools(), self.images, pictures, parts,
            clock=lambda: 0.0, sleep=self.sleep,
        )  # fmt: skip

    async def sleep(self, seconds):
        self.waited.append(seconds)

    @property
    def answers(self):
        return [row for table in Parts.in_folder(self.folder).tables() for row in table.to_pylist()]


async def test_an_answer_is_written_with_what_was_found_and_what_it_took(tmp_path):
    stage = Stage(tmp_path, ask(), "<reason>r</reason><answer>ilse tarn [1]</answer>")
    [told] = await stage.player.play([asked(5, right_answers=["tarn"])])
    assert (told["row"], told["ended"], told["failure"], told["searches"]) == (5, "saved", "none", 1)
    [row] = stage.answers
    assert (row["id"], row["answer"], row["ending"], row["citations"]) == ("q5", "ilse tarn", "answered", [1])
    assert [(item["number"], item["text"]) for item in row["evidence"]] == [(1, "page 1")]
    assert (row["searches"], row["searches_failed"], row["attempts"], row["weights_version"]) == (1, 0, 1, "weights")
    assert (row["right_answers"], row["question"]) == (["tarn"], "who founded it?")
    assert row["sampled_tokens"] > 0


async def test_a_policy_that_fails_is_an_answer_too_and_has_none(tmp_path):
    stage = Stage(tmp_path, *["no tags at all"] * 10)
    [told] = await stage.player.play([asked()])
    assert (told["ended"], told["failure"]) == ("saved", "policy")
    [row] = stage.answers
    assert (row["answer"], row["ending"]) == (None, "out_of_turns")


async def test_pictures_are_shown_and_forgotten_afterwards(tmp_path):
    stage = Stage(tmp_path, say())
    stage.images = stage.player._images
    await stage.player.play([asked(pictures=[NO_PICTURE | {"bytes": picture()}])])
    [(history, _, _)] = stage.engine.seen
    [placed] = history[0].images
    assert (placed.ref.width, placed.ref.height) == (40, 40)
    assert not stage.images._held


@pytest.mark.parametrize(
    "changes",
    [
        {"problem": "question has no text"},
        {"pictures": [NO_PICTURE | {"bytes": b"no picture"}]},
        {"pictures": [NO_PICTURE | {"where": "nowhere.png"}]},
    ],
)
async def test_a_row_that_cannot_be_asked_is_recorded_as_that_and_not_played(tmp_path, changes):
    stage = Stage(tmp_path)
    [told] = await stage.player.play([asked(**changes)])
    assert (told["ended"], told["failure"], stage.engine.seen) == ("saved", "data", [])
    [row] = stage.answers
    assert (row["failure"], row["answer"], row["problem"]) == ("data", None, told["problem"])
    assert row["problem"]


async def test_what_the_infrastructure_spoilt_is_played_again(tmp_path):
    stage = Stage(tmp_path, GenerationFailed("the engine died"), say())
    [told] = await stage.player.play([asked()])
    assert (told["ended"], stage.engine.mended) == ("saved", 1)
    assert stage.answers[0]["attempts"] == 2
    assert len(stage.waited) == 1
    assert 0 < stage.waited[0] <= 2


async def test_what_stays_spoilt_is_told_and_not_written(tmp_path):
    stage = Stage(tmp_path, *[GenerationFailed("the engine died")] * 9)
    [told] = await stage.player.play([asked()])
    assert (told["ended"], told["failure"], told["problem"]) == ("spoilt", "infra", "the engine died")
    assert len(stage.engine.seen) == 3
    assert stage.answers == []


async def test_an_engine_that_cannot_be_mended_is_told(tmp_path):
    stage = Stage(tmp_path, GenerationFailed("the engine died"), broken=True)
    [told] = await stage.player.play([asked()])
    assert (told["ended"], told["problem"]) == ("broken", "the engine died 4 times")
    assert stage.answers == []


async def test_an_answer_after_a_refused_search_is_not_kept(tmp_path):
    tools = Tools(ToolResult(Outcome.REFUSED, message="text search failed (budget): 5 USD are spent"))
    stage = Stage(tmp_path, ask(), say(), tools=tools)
    [told] = await stage.player.play([asked()])
    assert (told["ended"], told["problem"]) == ("refused", "text search failed (budget): 5 USD are spent")
    assert stage.answers == []


async def test_searches_that_failed_are_counted_in_the_answer(tmp_path):
    stage = Stage(tmp_path, ask(), ask("again"), say(), tools=Tools(ToolResult(Outcome.INFRA_ERROR), found("x")))
    await stage.player.play([asked()])
    assert (stage.answers[0]["searches"], stage.answers[0]["searches_failed"]) == (2, 1)


async def test_storage_that_refuses_ends_it_all(tmp_path):
    class Full:
        async def save(self, row):
            raise OSError(28, "No space left on device")

    stage = Stage(tmp_path, say(), parts=Full())
    [told] = await stage.player.play([asked()])
    assert (told["ended"], told["problem"]) == ("broken", "answers cannot be written: No space left on device")


async def test_no_more_episodes_run_at_a_time_than_may_and_writing_takes_none_of_their_places(tmp_path):
    class Counted(Engine):
        now = most = 0

        async def generate(self, segments, sampling, *, deadline):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return await super().generate(segments, sampling, deadline=deadline)

    class Stuck:
        waiting = 0

        async def save(self, row):
            self.waiting += 1
            if self.waiting == 5:
                everyone.set()
            await everyone.wait()

    everyone, parts = asyncio.Event(), Stuck()
    stage = Stage(tmp_path, concurrency=2, parts=parts)
    stage.player._engine = engine = Counted(*[say()] * 5)
    async with asyncio.timeout(5):
        await stage.player.play([asked(i) for i in range(5)])
    assert (engine.most, parts.waiting) == (2, 5)
