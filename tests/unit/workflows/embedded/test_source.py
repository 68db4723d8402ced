"""The embedded world as a source of questions."""

import pytest

from actors.agent.trajectory import Label
from cluster.storage import Folder
from workflows.dataset.source import Part
from workflows.embedded.entities import make_world
from workflows.embedded.questions import FREE_KINDS, KINDS, MixSettings
from workflows.embedded.source import EmbeddedSource, balanced
from workflows.settings import load

SMALL = ["world.head=2", "world.tail_train=12", "world.tail_test=12"]
TRAIN = Part("questions/train", "train", 40, 40, taught=False)
TAUGHT = Part("sft", "train", 40, 50, taught=True)


@pytest.fixture
def source(tmp_path):
    return EmbeddedSource(load(None, [*SMALL, f"run.storage={tmp_path}"]), variants=2)


def read(source, part, images):
    return [item for unit in source.units(part) for item in source.read(unit, images)]


def test_a_unit_gives_the_same_question_each_time_and_never_the_truth_behind_it(source, web):
    first, again = read(source, TRAIN, web.images), read(source, TRAIN, web.images)
    assert [item.question for item in first] == [item.question for item in again]
    assert len({item.question.id for item in first}) == TRAIN.units
    assert all(len(item.question.images) == 1 and item.question.answers for item in first)


def test_conversations_are_about_other_questions_than_those_that_are_asked_later(source, web):
    asked = {item.question.id for item in read(source, TRAIN, web.images)}
    taught = [item.question for item in read(source, TAUGHT, web.images)]
    assert len(taught) == TAUGHT.units
    assert not asked & {question.id for question in taught}


def test_conversations_are_played_in_webs_that_say_what_is_true_nowhere_else(source, web, tmp_path):
    asked, taught = read(source, TRAIN, web.images), read(source, TAUGHT, web.images)
    assert {item.search for item in asked} == {None}
    folders = {item.search.text[0].kwargs["folder"] for item in taught}
    assert folders == {item.search.image[0].kwargs["folder"] for item in taught}
    assert len(folders) == 2
    for folder in folders:
        assert Folder(folder).files() == ["pages.parquet", "pictures.parquet"]
    required = [item for item in taught if item.question.designed_label is Label.REQUIRED]
    world = make_world(load(None, SMALL).world)
    years = {str(year) for year in range(1700, 2100)}
    assert not {answer for item in required for answer in item.question.answers} & world.names - years


def test_a_question_carries_its_right_first_steps_and_its_tags(source, web):
    asked = [item.question for item in read(source, TRAIN, web.images)]
    assert all(q.first_tools == ("none",) for q in asked if q.designed_label is Label.FREE)
    assert all(q.first_tools and "none" not in q.first_tools for q in asked if q.designed_label is Label.REQUIRED)
    assert {tag for q in asked for tag in q.tags} == {"crowded"}


def test_what_is_taught_is_half_search_free(source, web):
    labels = [item.question.designed_label for item in read(source, TAUGHT, web.images)]
    assert 0.25 < labels.count(Label.FREE) / len(labels) < 0.75


def test_balancing_a_mix_keeps_the_shares_within_each_half():
    mix = balanced(MixSettings())
    free = [getattr(mix, kind) for kind in FREE_KINDS]
    required = [getattr(mix, kind) for kind in KINDS if kind not in FREE_KINDS]
    assert sum(free) == pytest.approx(1)
    assert sum(required) == pytest.approx(1)
    assert free[1] / free[0] == pytest.approx(0.20 / 0.15)


def test_a_mix_of_one_label_alone_stays_as_it_is():
    only = MixSettings(image=0, text=0, image_text=0, two_hops=0, refinement=0)
    assert balanced(only) == only
