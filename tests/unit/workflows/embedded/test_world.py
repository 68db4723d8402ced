"""Who exists, what the web says of them, and what is never said or shared."""

import itertools
import re
from collections import defaultdict
from random import Random

import pytest

from workflows.embedded.entities import World, WorldSettings, make_world
from workflows.embedded.lessons import LessonMix, Lessons, corpus
from workflows.embedded.lexicon import COLOURS, MARKS, ORGANISATION_FACTS, SHAPES, Names, is_name
from workflows.embedded.pages import make_pages
from workflows.embedded.pictures import compose, render, web_picture
from workflows.embedded.questions import KINDS, MixSettings, draft_questions, follow

SPLITS = ("head", "train", "test")
SMALL = WorldSettings(seed=1, head=2, tail_train=6, tail_test=6)


def names_of(world: World, split: str) -> set[str]:
    """Names, people, products and cities, with what is in the cities."""
    found: set[str] = set()
    for it in world.of(split):
        others = it.namesake.facts.values() if it.namesake else ()
        found.update((it.name, *it.facts.values(), *it.former_chiefs, *others))
        for facts in (it.facts, it.namesake.facts if it.namesake else it.facts):
            found.update(world.city[facts["city"]].facts.values())
    return {name for name in found if not name.isdigit()}


def test_a_variant_has_the_same_heads_and_emblems_and_shares_no_other_name():
    world, other, third = (make_world(SMALL, variant) for variant in range(3))
    assert world.of("head") == other.of("head")
    for split in SPLITS:
        assert [it.emblem for it in world.of(split)] == [it.emblem for it in other.of(split)]
    tails = [names_of(it, "train") | names_of(it, "test") for it in (world, other, third)]
    assert not tails[0] & tails[1]
    assert not tails[0] & tails[2]
    assert tails[1] != tails[2]


def test_the_same_seed_makes_the_same_world_web_and_pictures():
    one, again = make_world(SMALL), make_world(SMALL)
    assert one == again
    assert make_pages(one) == make_pages(again)
    scenes = [compose([it.emblem for it in one.organisations[:3]], Random(5)) for _ in range(2)]
    assert render(scenes[0]) == render(scenes[1])
    drafts = [list(draft_questions(one, MixSettings(), "test", 20, 7)) for _ in range(2)]
    assert drafts[0] == drafts[1]


def test_another_seed_makes_another_world_with_other_names_and_questions(world):
    other = make_world(WorldSettings(seed=4, head=6, tail_train=36, tail_test=24, homonyms=0.3))
    assert len(other.names & world.names) < 0.5 * len(world.names)
    assert [it.emblem for it in other.of("test")] != [it.emblem for it in world.of("test")]
    asked, asked_again = (list(draft_questions(world, MixSettings(), "train", 20, seed)) for seed in (0, 1))
    assert [d.text for d in asked] != [d.text for d in asked_again]


@pytest.mark.parametrize(("one", "other"), itertools.combinations(SPLITS, 2))
def test_splits_share_no_emblem_name_person_product_or_city(world, one, other):
    assert not {it.emblem for it in world.of(one)} & {it.emblem for it in world.of(other)}
    assert not names_of(world, one) & names_of(world, other)


def test_what_a_head_emblem_is_called_is_not_said_of_any_other(world):
    called = [it.emblem.words for it in world.of("head")]
    assert len(set(called)) == len(called)
    assert not set(called) & {it.emblem.words for split in ("train", "test") for it in world.of(split)}


def test_a_namesake_is_of_another_trade_and_alike_in_no_fact(world):
    namesakes = [it for it in world.organisations if it.namesake]
    assert namesakes
    assert all(it.split != "head" for it in namesakes)
    for it in namesakes:
        assert it.namesake.trade != it.trade
        assert all(it.namesake.facts[fact] != it.facts[fact] for fact in ORGANISATION_FACTS)


def test_every_name_is_a_pseudo_word_and_is_drawn_once(world):
    assert all(is_name(name.split()[-1]) for name in world.names)
    names = Names(Random(0), world.names)
    drawn = [names.draw(sort) for sort in ("person", "organisation", "city", "river", "product") for _ in range(200)]
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & world.names


def test_no_page_describes_an_emblem(world):
    looks = {*SHAPES, *COLOURS, *MARKS}
    for page in make_pages(world):
        words = set(re.findall(r"[a-z]+", f"{page.url} {page.title} {page.text}"))
        assert not words & looks, page


def test_the_web_has_living_and_dead_links_outdated_and_irrelevant_pages(world):
    pages = make_pages(world)
    urls = [page.url for page in pages]
    assert len(set(urls)) == len(urls)
    living = [link in set(urls) for page in pages for link in page.links]
    assert any(living)
    assert not all(living)
    current = {it.facts["chief"] for it in world.organisations}
    assert any("archive" in page.url and not any(chief in page.text for chief in current) for page in pages)
    assert sum("born in" in page.text for page in pages) == len(world.people) > 0


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (WorldSettings(head=17), "head must lie in 1..16, is 17"),
        (WorldSettings(tail_test=0), "at least 1"),
        (WorldSettings(tail_train=400), "no more emblems"),
        (WorldSettings(homonyms=1.0), "homonyms must lie in"),
    ],
)
def test_an_impossible_world_is_refused(settings, wrong):
    with pytest.raises(ValueError, match=re.escape(wrong)):
        make_world(settings)


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drafts(world):
    return {split: list(draft_questions(world, MixSettings(), split, 600, 0)) for split in ("train", "test")}


def test_kinds_come_in_their_shares_and_half_of_all_scenes_are_crowded(drafts):
    every = [*drafts["train"], *drafts["test"]]
    for kind in KINDS:
        assert abs(sum(d.kind == kind for d in every) / len(every) - getattr(MixSettings(), kind)) < 0.04
    assert abs(sum(d.scene.crowded for d in every) / len(every) - 0.5) < 0.05


def test_questions_stay_in_their_split_and_show_what_they_ask_for(world, drafts):
    for split, asked in drafts.items():
        emblems = {it.emblem for it in world.of(split) + world.of("head")}
        for draft in asked:
            assert set(draft.scene.emblems) <= emblems
            assert 1 <= len(draft.scene.placed) <= 4
            called = [emblem.words for emblem in draft.scene.emblems]
            assert len(set(called)) == len(called)
            assert draft.emblem is None or draft.emblem in draft.scene.emblems
            if draft.subject is not None:
                assert draft.subject.split == ("head" if draft.kind == "head" else split)
                assert draft.answer == follow(world, draft.subject, draft.path)
                assert (draft.emblem is None) == (draft.subject.name in draft.text)
                assert draft.answer not in draft.text


def test_a_question_is_a_refinement_exactly_when_something_else_ranks_first(drafts):
    for draft in [*drafts["train"], *drafts["test"]]:
        if draft.subject is None or draft.kind in ("head", "image"):
            continue
        needs_care = draft.subject.namesake is not None or draft.path == ("chief",)
        assert needs_care == (draft.kind == "refinement")


def test_each_manner_of_asking_keeps_a_wording_for_the_test(drafts):
    def wordings(split):
        named = [(d, d.subject.name if d.emblem is None else d.emblem.words) for d in drafts[split] if d.subject]
        return {d.text.replace(about, "X").replace(d.path[-1] if d.path else "?", "F") for d, about in named}

    assert wordings("test") - wordings("train")
    assert wordings("test") & wordings("train")


def opening(draft):
    """What a question is opened with, and how long its reference is: what a wording is kept for."""
    about = draft.subject.name if draft.emblem is None else draft.emblem.words
    text = draft.text.replace(about, "X " * len(about.split())).replace(draft.path[-1] if draft.path else "?", "F")
    return " ".join(text.split())


def test_a_wording_that_is_tagged_as_unseen_is_never_asked_in_training_and_others_are(drafts):
    seen = {opening(d) for d in drafts["train"] if d.subject}
    unseen = [d for d in drafts["test"] if d.unseen_wording]
    assert not any("unseen_wording" in d.tags for d in drafts["train"])
    assert 0.3 < len(unseen) / sum(d.subject is not None for d in drafts["test"]) < 0.7
    assert not {opening(d) for d in unseen} & seen
    others = {opening(d) for d in drafts["test"] if d.subject and not d.unseen_wording}
    assert len(others & seen) > 0.8 * len(others)


def test_the_right_first_step_is_known_for_every_question(drafts):
    for draft in [*drafts["train"], *drafts["test"]]:
        assert ("crowded" in draft.tags) == (len(draft.scene.placed) > 1)
        if draft.kind in ("looking", "head"):
            assert draft.first_tools == ("none",)
        elif draft.subject.name in draft.text:
            assert draft.first_tools == ("text_search",)
        else:
            assert draft.first_tools == (("crop",) if draft.scene.crowded else ("crop", "image_search"))


@pytest.mark.parametrize(
    "settings", [WorldSettings(head=1, tail_train=1, tail_test=1), WorldSettings(head=1, homonyms=0.99)]
)
def test_an_odd_world_can_be_asked_about_all_the_same(settings):
    assert len(list(draft_questions(make_world(settings), MixSettings(crowded=1.0), "test", 60, 0))) == 60


# --- lessons ----------------------------------------------------------------------------------------------------------


def test_no_lesson_says_anything_of_a_tested_organisation(world):
    tested = {it.emblem for it in world.of("test")}
    hidden = world.names - names_of(world, "head")
    kinds = set()
    for lesson in itertools.islice(Lessons(world, LessonMix(), 0), 1500):
        kinds.add(lesson.kind)
        assert ("<image>" in lesson.exchanges[0].text) == (lesson.scene is not None)
        said = " ".join(f"{exchange.text} {exchange.reply}" for exchange in lesson.exchanges)
        words = set(re.findall(r"[a-z]+", said)) | set(re.findall(r"[a-z]+ [a-z]+", said))
        assert not words & hidden, lesson
        named = re.findall(r"an? (\w+ \w+ with \w+) is ", said)
        assert not {emblem.description for emblem in tested} & set(named), lesson
    assert kinds == set(vars(LessonMix()))


def test_which_mark_an_emblem_has_cannot_be_told_from_its_other_words(world):
    """Else a model answers without looking, and is wrong about just the emblems that are tested."""
    head = {it.emblem.words for it in world.of("head")}
    scenes = (lesson.scene for lesson in itertools.islice(Lessons(world, LessonMix(), 0), 6000) if lesson.scene)
    marks = defaultdict(set)
    for emblem in (emblem for scene in scenes for emblem in scene.emblems):
        marks[emblem.words].add(emblem.mark)
    assert all(len(found) == (1 if words in head else len(MARKS)) for words, found in marks.items())


def test_the_tokenizers_corpus_holds_no_whole_name(world):
    words = {word for text in corpus(world, 300, 0) for word in re.findall(r"[a-z]+", text)}
    assert not words & {part for name in world.names for part in name.split() if is_name(part)}


def test_a_web_picture_is_the_same_each_time_and_differs_by_number(world):
    emblem = world.organisations[0].emblem
    assert web_picture(emblem, 0) == web_picture(emblem, 0) != web_picture(emblem, 1)
