"""What an agent replica decides without an engine."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS
from workflows.serve.agent import bounded, joined, within
from workflows.serve.chat import Bounds

BOUNDS = Bounds(turns=None, tool_calls=None, cost_usd=None, seconds=10.0)
reports = st.one_of(
    st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(["reasoning", "content"]), st.text()),
    st.builds(lambda number: {"type": "turn", "number": number}, st.integers(1, 9)),
)


def said(batch, kind):
    return "".join(report["text"] for report in batch if report["type"] == kind)


@given(st.lists(reports, max_size=12))
def test_reports_of_a_moment_are_put_together_and_keep_words_and_order(batch):
    told = joined(batch)
    assert [said(told, kind) for kind in ("reasoning", "content")] == [said(batch, k) for k in ("reasoning", "content")]
    assert [report for report in told if report["type"] == "turn"] == [r for r in batch if r["type"] == "turn"]
    kinds = [report["type"] for report in told]
    assert all(one != other or one == "turn" for one, other in pairwise(kinds))


@given(st.integers(1, 40))
def test_a_request_can_have_fewer_turns_than_the_protocol_and_never_more(turns):
    preset = PRESETS["extended"]
    assert bounded(preset, replace(BOUNDS, turns=turns)).max_turns == min(turns, preset.max_turns)


def test_without_a_bound_the_protocol_is_as_it_was_trained():
    assert bounded(PRESETS["extended"], BOUNDS) is PRESETS["extended"]


@given(st.floats(0.1, 5000))
def test_an_episode_ends_with_its_request(seconds):
    limits = Limits(episode_timeout_s=600.0)
    assert within(limits, replace(BOUNDS, seconds=seconds)).episode_timeout_s == min(600.0, seconds)
