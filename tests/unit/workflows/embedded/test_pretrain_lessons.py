"""The lessons of a step follow from its number alone, so a resumed run needs no state for them."""

from itertools import islice

from actors.model.tiny import TinySize
from workflows.embedded.lessons import LessonMix, Lessons
from workflows.embedded.lexicon import ORGANISATION_FACTS
from workflows.embedded.pretrain import lessons_of, rates_of
from workflows.embedded.pretrain_settings import PretrainSettings

SETTINGS = PretrainSettings(steps=10, warmup_steps=1, batch=16, size=TinySize())


def test_a_step_has_the_same_lessons_in_every_run(world):
    third = lessons_of(world, SETTINGS, seed=4, step=3)
    assert third == lessons_of(world, SETTINGS, seed=4, step=3)
    assert len(third) == SETTINGS.batch
    assert third != lessons_of(world, SETTINGS, seed=4, step=4)
    assert third != lessons_of(world, SETTINGS, seed=5, step=3)


def test_rates_are_shares_by_kind():
    assert rates_of(["see", "read", "see"], [True, False, False]) == {"see": 0.5, "read": 0.0}


def test_what_is_seen_and_known_is_recalled_in_the_words_that_the_teacher_uses(world):
    lessons = islice(Lessons(world, LessonMix(), seed=3), 600)
    replies = {exchange.reply for it in lessons if it.kind == "see" for exchange in it.exchanges}
    stated = {
        f"a {it.emblem.description} is {it.name}. {fact}? {it.facts[fact]}."
        for it in world.of("head")
        for fact in ORGANISATION_FACTS
    }
    assert len(replies & stated) > 10
