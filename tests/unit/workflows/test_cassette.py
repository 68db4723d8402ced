from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.store.parts import Recording, earliest, part_names, read_part, write_part
from actors.search.store.records import Answer, Call, Kind
from cluster.errors import UserError
from cluster.storage import Folder
from workflows import cassette
from workflows.cassette import info, merge, prune

DAY = 86_400.0
NOW = 1_000 * DAY


def recording(query, at, text="x", tool="text_search", **blobs):
    call = Call(tool, {"query": query}, ("p",))
    answer = Answer(Kind.TEXT, f'"{text}"'.encode(), blobs, provider="p", at=at, cost_usd=0.5)
    return Recording(call.key, tool, call.text, answer, tuple(sorted(blobs)))


@pytest.fixture
def made(tmp_path):
    """made(name, recordings...): the address of a cassette with one part per list."""

    def make(name, *parts):
        folder = Folder(tmp_path / name)
        for rows in parts:
            write_part(folder, rows)
        return folder.address

    return make


def rows_of(address):
    folder = Folder(address)
    return [row for name in part_names(folder) for row in read_part(folder, name, blobs=True)]


def files_of(address):
    return {name: Folder(address).read_bytes(name) for name in part_names(Folder(address))}


# --- info -------------------------------------------------------------------------------------------------


def test_info_tells_what_a_cassette_holds(made):
    address = made(
        "one",
        [recording("a", 10 * DAY), recording("b", 12 * DAY, tool="ground")],
        [recording("a", 11 * DAY, "other"), recording("a", 13 * DAY)],
    )
    told = info(address)
    assert (told.parts, told.recordings, told.calls, told.conflicts, told.cost_usd) == (2, 4, 2, 1, 1.0)
    assert told.by_tool == {"ground": 1, "text_search": 1}
    assert (told.by_provider, told.by_kind) == ({"p": 2}, {"text": 2})
    assert (told.first_at, told.last_at) == (10 * DAY, 13 * DAY)
    assert told.bytes == sum(map(len, files_of(address).values()))
    assert str(told).splitlines()[0].startswith(f"{address}: 2 calls in 2 parts, ")
    assert "1970-01-11 00:00 to 1970-01-14 00:00, for 1.0000 USD" in str(told)
    assert "repeated   2, 1 with another answer" in str(told)


def test_an_answer_without_a_provider_counts_for_the_one_that_was_to_be_asked(made):
    boxes = replace(recording("a", 1.0, tool="ground"), answer=Answer(Kind.BOXES, b"[]", at=1.0))
    second = replace(recording("b", 1.0), answer=Answer(Kind.TEXT, b'"x"', provider="the second one", at=1.0))
    told = info(made("one", [boxes, second]))
    assert told.by_provider == {"p": 1, "the second one": 1}
    assert "repeated" not in str(told)


def test_a_folder_without_a_cassette_is_said(tmp_path):
    for command in (info, lambda folder: merge([folder], str(tmp_path / "to")), lambda folder: prune(folder, limit=1)):
        with pytest.raises(UserError, match="no cassette"):
            command(str(tmp_path / "nothing"))
    assert not (tmp_path / "to").exists()


# --- merge ------------------------------------------------------------------------------------------------


def test_a_merge_has_every_call_once_the_earliest_and_its_pictures(made, tmp_path):
    one = made("one", [recording("a", 10.0, "early", red=b"r"), recording("b", 10.0)])
    two = made("two", [recording("a", 20.0, "late"), recording("b", 20.0)], [recording("c", 5.0)])
    sources = files_of(one), files_of(two)
    told = merge([one, two], str(tmp_path / "to"))
    expected = [recording("a", 10.0, "early", red=b"r"), recording("b", 10.0), recording("c", 5.0)]
    assert rows_of(tmp_path / "to") == sorted(expected, key=lambda row: row.key)
    assert (told.taken, told.calls, told.repeated) == ((2, 3), 3, 2)
    assert told.conflicts == (recording("a", 0).call,)
    assert (files_of(one), files_of(two)) == sources
    assert '"query":"a"' in str(told)


def test_the_order_of_sources_and_a_second_merge_change_no_byte(made, tmp_path):
    one = made("one", [recording(q, 10.0, "x") for q in "abcdef"])
    two = made("two", [recording(q, 10.0, "y") for q in "defghi"])
    merge([one, two], str(tmp_path / "to"), rows_per_part=4)
    merge([two, one], str(tmp_path / "ot"), rows_per_part=4)
    files = files_of(tmp_path / "to")
    assert files == files_of(tmp_path / "ot")
    assert len(files) == 3
    keys = [row.key for name in files for row in read_part(Folder(tmp_path / "to"), name, blobs=False)]
    assert sorted(keys) == sorted(earliest([*rows_of(one), *rows_of(two)]))
    merge([one, two], str(tmp_path / "to"), rows_per_part=4)
    assert files_of(tmp_path / "to") == files


def test_what_the_target_has_stays_and_a_target_may_be_a_source(made):
    one, to = made("one", [recording("a", 10.0)]), made("to", [recording("b", 10.0)], [recording("b", 20.0)])
    told = merge([one, to], to)
    assert (told.calls, len(told.sources)) == (2, 2)
    assert len(part_names(Folder(to))) == 1
    told = merge([to], to)
    assert (told.calls, told.repeated) == (2, 0)


def test_a_merge_that_is_interrupted_has_lost_nothing(made, monkeypatch):
    one, to = made("one", [recording("a", 10.0)]), made("to", [recording("b", 10.0)])
    before = earliest([*rows_of(one), *rows_of(to)])
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        broken.setattr(Folder, "ensure_writable", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            merge([one], to)
    assert earliest(rows_of(to)) == before
    merge([one], to)
    assert rows_of(to) == list(before.values())


@pytest.mark.parametrize(("sources", "rows"), [([], 10), (["one"], 0)])
def test_a_merge_of_nothing_or_into_empty_parts_is_refused(made, tmp_path, sources, rows):
    made("one", [recording("a", 1.0)])
    with pytest.raises(UserError):
        merge([str(tmp_path / source) for source in sources], str(tmp_path / "to"), rows)


# --- prune ------------------------------------------------------------------------------------------------


def queries(address):
    return sorted(Call.parse(row.call).arguments["query"] for row in rows_of(address))


@pytest.fixture
def aged(made):
    """a, b, c: ten, two days and one hour old; g: a grounding, ten days old."""
    return made(
        "aged",
        [recording("a", NOW - 10 * DAY), recording("b", NOW - 2 * DAY, red=b"r" * 100)],
        [recording("c", NOW - 3600), recording("g", NOW - 10 * DAY, tool="ground")],
    )


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        ({"older_than": "5d"}, "bc"),
        ({"older_than": "2d"}, "bc"),
        ({"older_than": "1.5h"}, "c"),
        ({"older_than": "1000w"}, "abcg"),
        ({"older_than": "1972-09-20"}, "bc"),
        ({"older_than": "5d", "tool": "text_search"}, "bcg"),
        ({"tool": "text_search"}, "g"),
        ({"limit": 2}, "bc"),
        ({"limit": 1, "tool": "text_search"}, "cg"),
        ({"limit": 1, "older_than": "5d"}, "c"),
        ({"limit": 0}, ""),
        ({"limit": 9}, "abcg"),
    ],
)
def test_prune_drops_what_the_conditions_say(aged, conditions, left):
    told = prune(aged, **conditions, now=NOW)
    assert queries(aged) == sorted(left)
    assert (told.kept, told.removed) == (len(left), 4 - len(left))
    assert told.bytes_after == sum(map(len, files_of(aged).values()))
    assert f"{4 - len(left)} call" in str(told)
    assert {row.answer.blobs["red"] for row in rows_of(aged) if row.answer.blobs} == (
        {b"r" * 100} if "b" in left else set()
    )


def test_a_later_recording_of_an_old_call_takes_its_place(made):
    address = made("one", [recording("a", NOW - 10 * DAY, "old")], [recording("a", NOW - 1 * DAY, "new")])
    told = prune(address, older_than="5d", now=NOW)
    assert rows_of(address) == [recording("a", NOW - 1 * DAY, "new")]
    assert (told.kept, told.removed) == (1, 0)


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ({}, "Nothing to prune by"),
        ({"older_than": "soon"}, "'soon'"),
        ({"older_than": "-5d"}, "'-5d'"),
        ({"older_than": "2026-02-31"}, "2026-02-31"),
        ({"limit": -1}, "0 or more"),
        ({"tool": "read_page"}, "it has ground, text_search"),
    ],
)
def test_what_cannot_be_understood_is_refused_and_changes_nothing(aged, conditions, says):
    before = files_of(aged)
    with pytest.raises(UserError, match=says):
        prune(aged, **conditions, now=NOW)
    assert files_of(aged) == before


def test_a_part_that_appears_while_pruning_stays(aged, monkeypatch):
    write = cassette.write_parts

    def and_somebody_records(folder, *arguments):
        write_part(folder, [recording("new", NOW)])
        return write(folder, *arguments)

    monkeypatch.setattr(cassette, "write_parts", and_somebody_records)
    prune(aged, limit=0, now=NOW)
    assert queries(aged) == ["new"]


rows = st.lists(
    st.builds(recording, st.sampled_from("abcd"), st.floats(0, 100), st.sampled_from("xy")), min_size=1, max_size=8
)


@settings(max_examples=20, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3), st.integers(1, 3))
def test_a_merge_holds_the_earliest_of_all_sources(tmp_path_factory, groups, rows_per_part):
    root = Folder(tmp_path_factory.mktemp("merge"))
    for i, group in enumerate(groups):
        write_part(root / f"{i}", group)
    merge([(root / f"{i}").address for i in range(len(groups))], (root / "to").address, rows_per_part)
    expected = earliest([row for group in groups for row in group])
    assert {row.key: row for row in rows_of((root / "to").address)} == expected
