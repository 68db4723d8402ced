"""What has changed between two configurations is told by the keys that a person would set."""

from hypothesis import given
from hypothesis import strategies as st

from workflows.identity import TOLD, changes

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, max_size=4)


def test_a_nested_value_is_told_by_its_dotted_key():
    before = {"sft": {"lr": 0.001, "steps": 75}, "seed": 0}
    now = {"sft": {"lr": 0.002, "steps": 75}, "seed": 0}
    assert changes(before, now) == "sft.lr was 0.001 and is 0.002"


def test_a_key_that_came_or_went_is_told():
    assert changes({"a": 1}, {"b": 2}) == "a was 1 and is None; b was None and is 2"


def test_of_many_changes_the_first_are_told_and_the_others_counted():
    told = changes({}, {f"k{i}": i for i in range(TOLD + 3)})
    assert told.count("was None") == TOLD
    assert told.endswith("and 3 more")


@given(MAPPINGS)
def test_nothing_is_told_of_equals(values):
    assert changes(values, dict(values)) == ""
