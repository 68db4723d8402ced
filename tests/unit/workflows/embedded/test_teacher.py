"""The teacher plays through the same loop, tools and renderer as everybody else, and never says what it did not see."""

import asyncio
import time
from collections import Counter

import pytest

from actors.agent.episode import Limits, run_episode
from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS, ImageSearch, TextSearch
from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Label, Question, SegmentKind, Tool
from actors.model.renderer import ChatRenderer
from actors.model.tiny import build_tokenizer
from workflows.embedded.lessons import corpus
from workflows.embedded.pictures import render
from workflows.embedded.questions import MixSettings, draft_questions
from workflows.embedded.teacher import StyleSettings, Teacher

CAREFUL = StyleSettings(needless=0, whole_first=0, poor_query=0, one_more=0)
CLUMSY = StyleSettings(needless=1, whole_first=1, poor_query=1, one_more=1)
LIMITS = Limits(max_total_tokens=1024, max_turn_tokens=96)  # of conf/embedded.yaml


class Sixteen:
    def n_tokens(self, ref) -> int:
        return 16


@pytest.fixture(scope="module")
def renderer(world):
    return ChatRenderer(build_tokenizer(corpus(world, 800, 0), 1024, TAGS), Sixteen())


@pytest.fixture(scope="module")
def played(world, web, renderer):
    """(draft, trajectory) of the same test questions, by the teacher's style."""

    async def all_of(style: StyleSettings, n: int):
        gateway = web.gateway()
        return [
            (draft, await episode(draft, style, gateway))
            for draft in draft_questions(world, MixSettings(), "test", n, 2)
        ]

    async def episode(draft, style, gateway):
        question = Question(draft.id, draft.text, (web.images.put(render(draft.scene)),), (draft.answer,))
        return await run_episode(
            question,
            0,
            PRESETS["compact"],
            Teacher(draft, world, style, renderer, seed=0),
            renderer,
            gateway,
            sampling=Sampling(),
            limits=LIMITS,
            clock=time.monotonic,
        )

    styles = {"usual": (StyleSettings(), 100), "careful": (CAREFUL, 50), "clumsy": (CLUMSY, 50)}
    return {name: asyncio.run(all_of(style, n)) for name, (style, n) in styles.items()}


def tools(trajectory) -> str:
    """The calls of an episode: W whole image, C crop, T text."""
    letters = []
    for call in trajectory.tool_calls:
        whole = "C" if call.request.query else "W"
        letters.append("T" if call.request.tool is Tool.TEXT_SEARCH else whole)
    return "".join(letters)


@pytest.mark.parametrize("style", ["usual", "careful", "clumsy"])
def test_each_episode_ends_well_formed_with_the_right_answer_or_gives_up(played, style):
    endings = Counter(it.ending for _, it in played[style])
    assert set(endings) <= {Ending.ANSWERED, Ending.GAVE_UP}
    assert endings[Ending.GAVE_UP] <= 0.04 * endings.total()
    for draft, it in played[style]:
        assert it.format_ok, it.problem
        assert it.failure is Failure.NONE
        assert it.ending is Ending.GAVE_UP or it.answer == draft.answer, (draft.text, it.answer)


@pytest.mark.parametrize("style", ["usual", "careful", "clumsy"])
def test_no_answer_is_given_that_was_not_seen(played, style):
    for draft, it in played[style]:
        if it.ending is Ending.GAVE_UP:
            continue
        cited = [e for e in it.evidence if e.number in it.citations]
        if draft.label is Label.REQUIRED:
            assert len(cited) == 1
        if cited:
            assert draft.answer in f"{cited[0].title}: {cited[0].text}"
            assert f"[{cited[0].number}] " in "".join(s.text for s in it.segments if s.kind is SegmentKind.OBSERVATION)
        else:
            assert not it.tool_calls
            known = draft.kind == "head" or draft.answer in draft.emblem.description
            assert known, draft.text


def test_what_the_teacher_writes_is_read_back_from_its_tokens(played, renderer):
    for _, it in played["usual"][:20]:
        for segment in it.segments:
            if segment.kind is SegmentKind.ACTION:
                assert renderer.decode(segment.token_ids) == segment.text
                assert not renderer.forbidden(segment.token_ids)


def test_what_is_seen_or_known_by_heart_is_said_before_it_is_answered(played):
    known = [
        (draft, it)
        for draft, it in played["careful"]
        if draft.kind == "looking" or (draft.kind == "head" and draft.path)
    ]
    assert {draft.kind for draft, _ in known} == {"looking", "head"}
    for draft, it in known:
        said, _, answer = it.segments[-1].text.partition("</reason>")
        assert said.endswith(f" {draft.category}? {draft.answer}.")
        assert draft.answer in answer


def test_a_careful_teacher_takes_the_shortest_path_of_each_kind(played):
    shortest = {
        "looking": {""},
        "head": {""},
        "image": {"W", "C"},
        "text": {"T"},
        "image_text": {"WT", "CT"},
        "two_hops": {"WTT", "CTT"},
        "refinement": {"T", "WT", "CT"},
    }
    for draft, it in played["careful"]:
        if it.ending is Ending.ANSWERED:
            assert tools(it) in shortest[draft.kind], (draft.text, tools(it))
            assert not (draft.scene.crowded and "W" in tools(it))


def test_a_clumsy_teacher_does_everything_in_excess_within_the_limits(played):
    for draft, it in played["clumsy"]:
        if it.ending is Ending.GAVE_UP:
            continue
        if draft.kind == "looking":
            assert tools(it) == ""
        elif draft.kind == "head":
            assert tools(it).strip("W") in ("T", "C", "")
            assert tools(it) != ""
        else:
            lucky = draft.subject.name in [e.title for e in it.tool_calls[0].result.evidence]
            assert tools(it).startswith("WC") == (draft.scene.crowded and draft.emblem is not None and not lucky)
            queries = [call.request.query for call in it.tool_calls if call.request.tool is Tool.TEXT_SEARCH]
            poor = draft.kind == "refinement"
            assert len(queries) == len(draft.path) + poor + 1  # and once more


def test_clumsiness_occurs_at_about_its_rates(world, renderer):
    style, n = StyleSettings(), 1200
    count: Counter[str] = Counter()
    for draft in draft_questions(world, MixSettings(), "train", n, 3):
        script = Teacher(draft, world, style, renderer, seed=0)._script
        _, first = script.next("")
        free = draft.label is Label.FREE and draft.subject is not None
        count["free"] += free
        count["needless"] += free and isinstance(first, ImageSearch | TextSearch)
        crowd = draft.scene.crowded and isinstance(first, ImageSearch)
        count["crowd"] += crowd
        count["whole"] += crowd and first == ImageSearch()
        if isinstance(first, TextSearch) and draft.kind == "refinement" and draft.subject is not None:
            count["asks"] += 1
            count["poor"] += not {"current", draft.subject.trade} & set(first.query.split())
    assert count["needless"] / count["free"] == pytest.approx(style.needless, abs=0.1)
    assert count["whole"] / count["crowd"] == pytest.approx(style.whole_first, abs=0.1)
    assert count["poor"] / count["asks"] == pytest.approx(style.poor_query, abs=0.2)


def test_searching_once_more_happens_at_about_its_rate(played):
    more = [tools(it) for draft, it in played["usual"] if draft.kind == "text" and it.ending is Ending.ANSWERED]
    more += [tools(it)[-2:] for draft, it in played["usual"] if draft.kind == "image_text"]
    assert sum(path == "TT" for path in more) / len(more) == pytest.approx(StyleSettings().one_more, abs=0.15)


def test_a_rate_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match="one_more must lie in"):
        StyleSettings(one_more=1.5).check()
