"""The start check says plainly when training would unlearn searching."""

import asyncio

import pytest

from actors.agent.seams import Sampling
from actors.agent.trajectory import Ending, Failure, Label, Question, Summary
from workflows.grpo.evaluation_metrics import Played
from workflows.grpo.start_check import choose, play, rows, table_of, warnings


def question(i, kind):
    label = Label.REQUIRED if kind == "text" else Label.FREE
    return Question(f"{kind}{i}", "?", kind=kind, designed_label=label)


QUESTIONS = {q.id: q for kind in ("looking", "text") for q in (question(i, kind) for i in range(20))}


def summary(q, searches, right, failure=Failure.NONE):
    return Summary(q.id, 0, right, right, Ending.ANSWERED, failure, searches, 9, 40, 0, 0, 1.0)


def table(searches_text, right_text, right_looking=1.0):
    played = []
    for q in QUESTIONS.values():
        searches, right = (searches_text, right_text) if q.kind == "text" else (0, right_looking)
        played.append(Played(q, summary(q, searches, right)))
    return rows(played)


def test_each_kind_is_asked_equally_often_and_always_the_same_ones():
    chosen = choose(QUESTIONS, 8, seed=3)
    assert [q.kind for q in chosen].count("text") == [q.kind for q in chosen].count("looking") == 8
    assert chosen == choose(QUESTIONS, 8, seed=3)
    assert chosen != choose(QUESTIONS, 8, seed=4)


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (table(1, 0.0), "unlearn"),
        (table(0, 0.0), "hardly ever searches"),
        (table(1, 0.0, 0.0), "rewards will be flat"),
        (table(1, 1.0), "right already"),
    ],
)
def test_a_start_that_cannot_be_reinforced_is_said_so(start, word):
    assert any(word in w for w in warnings(start))


def test_a_good_start_needs_no_words():
    assert warnings(table(1, 1.0, 0.0)) == []
    assert table_of(table(1, 1.0)).row_count == 2


def test_failed_episodes_do_not_count_as_wrong():
    q = question(0, "text")
    (row,) = rows([Played(q, summary(q, 1, 1.0)), Played(q, summary(q, 0, 0.0, Failure.INFRA))])
    assert (row.episodes, row.failed, row.accuracy) == (1, 1, 1.0)


async def test_late_episodes_are_cancelled_and_told_as_failed():
    running = set()

    class Late:
        async def run(self, q, index, sampling):
            running.add(q.id)
            await asyncio.Event().wait()

        async def cancel(self, question_id):
            running.remove(question_id)
            raise ConnectionError  # which is no news of an episode that failed already

    played = await play([Late()], list(QUESTIONS.values()), Sampling(), 0.01)
    assert not running
    assert sum(row.failed for row in rows(played)) == len(QUESTIONS)


async def test_a_sampler_that_breaks_leaves_the_others_answers():
    class Good:
        async def run(self, q, index, sampling):
            await asyncio.sleep(0)
            return summary(q, 0, 1.0), None

    class Broken:
        async def run(self, q, index, sampling):
            raise ConnectionError

    played = await play([Good(), Broken()], list(QUESTIONS.values()), Sampling(), 5.0)
    assert [(row.episodes, row.failed) for row in rows(played)] == [(10, 10), (10, 10)]
    assert warnings(rows([])) == ["only 0 episodes of the start check could be played: it says nothing."]
