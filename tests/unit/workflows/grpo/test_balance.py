"""Which questions are left out for a mix."""

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.trajectory import Label, Question
from workflows.grpo.balance import with_free_share


def questions(labels):
    return {f"q{i}": Question(f"q{i}", "?", designed_label=label) for i, label in enumerate(labels)}


def shares(chosen):
    labels = [question.designed_label for question in chosen.values()]
    return labels.count(Label.FREE), labels.count(Label.REQUIRED)


@given(st.lists(st.sampled_from(list(Label))), st.floats(0, 1), st.integers(0, 3))
def test_the_share_is_met_to_one_question_and_only_one_label_loses_any(labels, share, seed):
    asked = questions(labels)
    chosen = with_free_share(asked, share, seed)
    free, required = shares(chosen)
    assert abs(free - share * (free + required)) <= 1
    assert list(chosen) == [id for id in asked if id in chosen]
    all_free, all_required = shares(asked)
    assert free == all_free or required == all_required
    assert all(id in chosen for id, question in asked.items() if question.designed_label is Label.UNKNOWN)


def test_another_seed_leaves_out_others():
    asked = questions([Label.FREE] * 50 + [Label.REQUIRED] * 50)
    assert with_free_share(asked, 0.1, 0) == with_free_share(asked, 0.1, 0) != with_free_share(asked, 0.1, 1)
