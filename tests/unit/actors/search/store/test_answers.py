import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.store.answers import ASIDE, FILE, AnswerStore, Counts
from actors.search.store.records import Answer, Kind

DAY = 86_400.0


def text(body: str, **blobs: bytes) -> Answer:
    return Answer(Kind.TEXT, body.encode(), blobs, provider="p", at=5.0, cost_usd=0.01, latency_s=0.4)


@pytest.fixture
def store(tmp_path):
    store = AnswerStore(tmp_path, 1000)
    yield store
    store.close()


def body_of(store, key, now=0.0):
    stored = store.get(key, now)
    return None if stored is None else stored.answer.body.decode()


def test_an_answer_comes_back_whole_with_the_time_that_it_has_left(store):
    answer = text("a", x=b"picture", y=b"")
    assert store.put("k", answer, now=100.0, ttl_s=DAY)
    stored = store.get("k", 160.0)
    assert stored.answer == answer
    assert stored.seconds == DAY - 60
    assert store.get("other", 160.0) is None


def test_an_answer_is_gone_when_its_time_is_over(store):
    store.put("brief", text("a"), 0.0, 10.0)
    store.put("long", text("b"), 0.0, 20.0)
    assert body_of(store, "brief", 9.9) == "a"
    assert body_of(store, "brief", 10.0) is None
    store.put("third", text("c"), 10.0, 5.0)
    assert store.counts == Counts(answers=2, bytes=2, evicted=0, expired=1)


def test_a_later_answer_takes_the_place_of_an_earlier_one_with_its_blobs(store):
    store.put("k", text("old", x=b"x" * 50), 0.0, DAY)
    store.put("k", text("new"), 1.0, DAY)
    assert store.get("k", 2.0).answer == text("new")
    assert store.counts == Counts(answers=1, bytes=3)


def test_the_least_recently_used_go_when_bytes_run_out(tmp_path):
    store = AnswerStore(tmp_path, 30)
    for key in "abc":
        store.put(key, text("0123456789"), 0.0, DAY)
    assert body_of(store, "a")
    store.put("d", text("0123456", x=b"890"), 0.0, DAY)
    assert [key for key in "abcd" if body_of(store, key)] == ["a", "c", "d"]
    assert store.counts == Counts(answers=3, bytes=30, evicted=1)


def test_blobs_count_and_an_answer_larger_than_all_is_not_kept(store):
    store.put("k", text("a"), 0.0, DAY)
    assert not store.put("big", text("a", x=b"x" * 1000), 0.0, DAY)
    assert store.get("big", 0.0) is None
    assert body_of(store, "k") == "a"


def test_what_was_stored_is_found_after_a_restart_in_the_same_order_of_use(tmp_path):
    first = AnswerStore(tmp_path, 20)
    first.put("a", text("0123456789"), 0.0, DAY)
    first.put("b", text("0123456789"), 0.0, DAY)
    first.get("a", 0.0)
    again = AnswerStore(tmp_path, 20)  # the first one was not closed: its process was killed
    assert again.counts == Counts(answers=2, bytes=20)
    again.put("c", text("0123456789"), 0.0, DAY)
    assert [key for key in "abc" if body_of(again, key)] == ["a", "c"]


def test_another_version_finds_nothing_and_takes_the_place(tmp_path):
    old = AnswerStore(tmp_path, 1000, "1")
    old.put("k", text("old"), 0.0, DAY)
    new = AnswerStore(tmp_path, 1000, "2")
    assert new.get("k", 0.0) is None
    new.put("k", text("new"), 0.0, DAY)
    assert (body_of(new, "k"), body_of(old, "k")) == ("new", None)


@pytest.mark.parametrize("start", [0, 16, 100])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path, caplog, start):
    store = AnswerStore(tmp_path, 1000)
    store.put("k", text("a"), 0.0, DAY)
    store.close()
    damaged = bytearray((tmp_path / FILE).read_bytes())
    damaged[start : start + 4000] = b"\xff" * 4000
    (tmp_path / FILE).write_bytes(damaged)
    store = AnswerStore(tmp_path, 1000)
    assert store.get("k", 0.0) is None
    assert store.put("k", text("b"), 0.0, DAY)
    assert body_of(store, "k") == "b"
    assert (tmp_path / ASIDE).read_bytes() == bytes(damaged)
    assert "set aside" in caplog.text


def test_pages_that_tear_while_the_file_is_open_are_a_miss_and_then_a_new_file(tmp_path, caplog):
    store = AnswerStore(tmp_path, 1 << 20)
    for i in range(50):
        store.put(f"k{i}", text("x" * 2000), 0.0, DAY)
    store.close()
    size = (tmp_path / FILE).stat().st_size
    store = AnswerStore(tmp_path, 1 << 20)
    with open(tmp_path / FILE, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * (size - 8192))
    found = [store.get(f"k{i}", 0.0) for i in range(50)]
    assert None in found
    assert store.put("new", text("b"), 0.0, DAY)
    assert body_of(store, "new") == "b"
    assert caplog.text.count("set aside") == 1


def test_an_answer_that_lost_its_blobs_is_not_given(tmp_path):
    store = AnswerStore(tmp_path, 1000)
    store.put("k", text("a", x=b"picture"), 0.0, DAY)
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("DELETE FROM blobs")
    other.commit()
    assert store.get("k", 0.0) is None


@pytest.mark.parametrize("change", ["PRAGMA user_version = 99", "DROP TABLE blobs"])
def test_a_file_of_another_layout_is_begun_anew(tmp_path, change):
    store = AnswerStore(tmp_path, 1000)
    store.put("k", text("a"), 0.0, DAY)
    store.close()
    other = sqlite3.connect(tmp_path / FILE)
    other.execute(change)
    other.commit()
    store = AnswerStore(tmp_path, 1000)
    assert store.get("k", 0.0) is None
    assert store.put("k", text("b"), 0.0, DAY)
    assert body_of(store, "k") == "b"


def test_a_file_that_another_process_holds_is_a_miss_told_once_each_time_and_then_works_again(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("actors.search.store.answers.LOCKED_S", 0.0)
    store = AnswerStore(tmp_path, 1000)
    store.put("k", text("a"), 0.0, DAY)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.get("k", 0.0) is None
    assert not store.put("k", text("b"), 0.0, DAY)
    assert caplog.text.count("cannot be used now") == 1
    other.execute("ROLLBACK")
    assert body_of(store, "k") == "a"
    other.execute("BEGIN IMMEDIATE")
    assert store.get("k", 0.0) is None
    assert caplog.text.count("cannot be used now") == 2
    other.execute("ROLLBACK")
    assert store.counts == Counts(answers=1, bytes=1)


def test_an_answer_that_the_file_does_not_take_costs_no_other(store):
    store.put("k", text("a"), 0.0, DAY)
    assert not store.put("bad", replace(text("b"), provider="\ud800"), 0.0, DAY)
    assert not store.put("bad", replace(text("b"), at=float("nan")), 0.0, DAY)
    assert (body_of(store, "k"), store.get("bad", 0.0)) == ("a", None)
    assert store.counts == Counts(answers=1, bytes=1)


steps = st.lists(
    st.tuples(st.sampled_from(["get", "put", "wait"]), st.sampled_from("abcdef"), st.integers(1, 40)), max_size=40
)


@settings(max_examples=30, deadline=None)
@given(steps)
def test_bytes_stay_within_bounds_and_nothing_old_or_false_is_given(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("answers")
    store, now, written = AnswerStore(folder, 100), 0.0, {}
    for step, key, n in steps:
        if step == "wait":
            now += n
        elif step == "put":
            assert store.put(key, text("x" * n, blob=b"y" * n), now, 30.0)
            written[key] = (n, now + 30.0)
        else:
            stored = store.get(key, now)
            if stored is not None:
                n, until = written[key]
                assert stored.answer == text("x" * n, blob=b"y" * n)
                assert 0 < stored.seconds == until - now
        assert store.counts.bytes <= 100
    again = AnswerStore(folder, 100)
    assert (again.counts.answers, again.counts.bytes) == (store.counts.answers, store.counts.bytes)
    again.close()
    store.close()
