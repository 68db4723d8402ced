import asyncio
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.agent.trajectory import Evidence
from actors.search.seams import ErrorKind, ProviderError, ScoredBox
from actors.search.store import parts
from actors.search.store.cassette import Cassette, CassetteMiss, Move, move, open_cassette, worth_recording
from actors.search.store.parts import PartDamaged, Recording, earliest, part_names, read_blobs, read_part, write_part
from actors.search.store.records import Answer, Call, Codec, Found, Kind, to_answer
from actors.search.store.settings import CassetteSettings, Mode
from cluster.errors import UserError
from cluster.storage import Folder
from tests.unit.actors.search.search_world import FolderImages, scene


def call(query="who founded Velmora", tool="text_search", **more):
    return Call(tool, {"query": query, "k": 5}, ("p",), **more)


def found(text="Ilse Tarn"):
    return Found((Evidence(1, "Page", text, "https://pages.example/1", "p", 5.0),), "p")


class World:
    """What is asked live: answers or raises what it was given, in order, the last one for good."""

    def __init__(self, *answers) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Wall:
    def __init__(self, now=100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "cassette")


def cassette(folder, mode, codec=None, **more):
    made = Cassette(folder, mode, codec or Codec(), **more)
    made.load()
    return made


async def recorded(folder, *queries, at=100.0, text="Ilse Tarn", **more):
    """A cassette with these calls, written."""
    made = cassette(folder, Mode.RECORD, wall=Wall(at), **more)
    for query in queries:
        await made.answer(call(query), World(found(text)))
    made.flush()
    return made


# --- modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "known", "unknown"),
    [
        (Mode.LIVE, Move.ASK, Move.ASK),
        (Mode.RECORD, Move.REPLAY, Move.ASK_AND_RECORD),
        (Mode.REPLAY, Move.REPLAY, Move.REFUSE),
        (Mode.REPLAY_OR_LIVE, Move.REPLAY, Move.ASK),
    ],
)
def test_each_mode_has_its_move(mode, known, unknown):
    assert (move(mode, True), move(mode, False)) == (known, unknown)


async def test_live_asks_every_time_and_leaves_no_file(folder):
    world, live = World(found()), cassette(folder, Mode.LIVE)
    for _ in range(2):
        assert await live.answer(call(), world) == (found(), False)
    assert live.flush() == 0
    assert (world.asked, folder.exists(), live.counts.misses) == (2, False, 0)


async def test_what_was_recorded_is_replayed_without_asking(folder):
    await recorded(folder, "a", "b")
    world, replay = World(found("other")), cassette(folder, Mode.REPLAY)
    assert await replay.answer(call("a"), world) == (found(), True)
    assert await replay.answer(call("b"), world) == (found(), True)
    assert world.asked == 0
    assert [one.arguments["query"] for one in replay.calls()] == [
        one.arguments["query"] for one in sorted((call("a"), call("b")), key=lambda one: one.key)
    ]


async def test_a_replayed_answer_has_identical_bytes_and_circumstances(folder):
    record = cassette(folder, Mode.RECORD, wall=Wall(7.0))
    await record.answer(call(), World(found()), cost_usd=lambda: 0.003)
    before = record.find(call())
    record.flush()
    assert record.find(call()) == before
    replay = cassette(folder, Mode.REPLAY)
    assert replay.find(call()) == before
    assert (before.body, before.at, before.cost_usd, before.provider) == (to_answer(found()).body, 7.0, 0.003, "p")
    assert before.latency_s >= 0


async def test_replay_of_an_unknown_call_is_an_error_that_names_it_and_asks_nobody(folder):
    await recorded(folder, "a")
    world, replay = World(found()), cassette(folder, Mode.REPLAY)
    with pytest.raises(CassetteMiss, match=r'not recorded: text_search \{"k":5,"query":"b"\}') as caught:
        await replay.answer(call("b"), world)
    assert world.asked == 0
    assert not caught.value.kind.retryable
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.kind) == (CassetteMiss, str(caught.value), caught.value.kind)


@pytest.mark.parametrize("other", [call("a", tool="image_search"), call("a", locale="de"), call("a", version="2")])
async def test_a_call_that_differs_in_tool_locale_or_version_is_another_one(folder, other):
    await recorded(folder, "a")
    with pytest.raises(CassetteMiss):
        await cassette(folder, Mode.REPLAY).answer(other, World(found()))


async def test_replay_or_live_asks_for_what_is_unknown_does_not_record_it_and_tells_the_rate(folder):
    await recorded(folder, "a")
    names = part_names(folder)
    world, mixed = World(found("new")), cassette(folder, Mode.REPLAY_OR_LIVE)
    assert await mixed.answer(call("a"), world) == (found(), True)
    for _ in range(3):
        assert await mixed.answer(call("b"), world) == (found("new"), False)
    mixed.flush()
    assert world.asked == 3
    assert (mixed.counts.hits, mixed.counts.misses, mixed.counts.hit_rate) == (1, 3, 0.25)
    assert part_names(folder) == names


async def test_record_continues_a_cassette_without_paying_twice(folder):
    first = cassette(folder, Mode.RECORD)
    await first.answer(call("a"), World(found("first")), cost_usd=lambda: 0.5)
    first.flush()
    world, second = World(found("second")), cassette(folder, Mode.RECORD)
    assert await second.answer(call("a"), world) == (found("first"), True)
    assert await second.answer(call("b"), world) == (found("second"), False)
    assert await second.answer(call("b"), world) == (found("second"), True)
    assert world.asked == 1
    assert (second.counts.recorded, second.counts.saved_usd) == (1, 0.5)


async def test_siblings_that_record_one_call_at_once_all_see_what_is_kept(folder):
    record = cassette(folder, Mode.RECORD)
    world = World(found("one"), found("two"), found("three"))
    answers = await asyncio.gather(*(record.answer(call(), world) for _ in range(3)))
    kept = record.find(call())
    assert {to_answer(value).body for value, _ in answers} == {kept.body}
    assert record.flush() == 1


# --- errors -----------------------------------------------------------------------------------------------


async def test_a_refusal_of_the_policys_words_is_recorded_and_replayed(folder):
    record = cassette(folder, Mode.RECORD)
    refusal = ProviderError(ErrorKind.BAD_REQUEST, "no such operator")
    with pytest.raises(ProviderError):
        await record.answer(call(), World(refusal))
    record.flush()
    world = World(found())
    with pytest.raises(ProviderError, match="no such operator") as caught:
        await cassette(folder, Mode.REPLAY).answer(call(), world)
    assert (caught.value.kind, world.asked) == (ErrorKind.BAD_REQUEST, 0)


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if kind is not ErrorKind.BAD_REQUEST])
async def test_a_failure_of_the_world_is_never_recorded(folder, kind):
    record = cassette(folder, Mode.RECORD)
    with pytest.raises(ProviderError):
        await record.answer(call(), World(ProviderError(kind, "x")))
    assert record.flush() == 0
    assert await record.answer(call(), World(found())) == (found(), False)


def test_a_picture_that_a_provider_refuses_is_not_of_the_policys_making():
    refusal = ProviderError(ErrorKind.BAD_REQUEST, "x")
    assert worth_recording(call(), refusal)
    assert not worth_recording(call(tool="image_search"), refusal)
    assert not worth_recording(call(tool="ground"), refusal)


async def test_an_answer_that_cannot_be_stored_is_given_and_counted(folder, caplog):
    record = cassette(folder, Mode.RECORD)
    odd = (ScoredBox((0, 0, 1, 1), float("nan")),)
    assert (await record.answer(call(tool="ground"), World(odd)))[1] is False
    assert (record.counts.unrecorded, record.counts.recorded, record.flush()) == (1, 0, 0)
    assert "cannot be recorded" in caplog.text


# --- thumbnails -------------------------------------------------------------------------------------------


async def test_thumbnails_are_recorded_shared_and_read_only_when_they_are_replayed(folder, tmp_path):
    stores = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        stores.append(FolderImages(str(tmp_path / name)))
    here, there = stores
    seen = Found(
        tuple(Evidence(i + 1, "t", "", thumbnail=here.put(scene(c))) for i, c in enumerate(("red", "blue"))), "p"
    )
    record = cassette(folder, Mode.RECORD, Codec(here))
    for i in range(70):  # more than one row group
        await record.answer(call(f"q{i}"), World(found()))
    await record.answer(call("seen"), World(seen))
    before = record.find(call("seen"))
    record.flush()
    assert record.find(call("seen")) == before
    assert not any(entry.recording.answer.blobs for entry in record._entries.values())
    replay = cassette(folder, Mode.REPLAY, Codec(there))
    assert not any(entry.recording.answer.blobs for entry in replay._entries.values())
    assert await replay.answer(call("seen"), World(found())) == (seen, True)
    assert [there.get(item.thumbnail) for item in seen.evidence] == [scene("red"), scene("blue")]
    assert replay.find(call("seen")) == before


async def test_a_part_that_vanishes_while_its_pictures_are_wanted_is_a_failure_of_the_world(folder, tmp_path):
    images = FolderImages(str(tmp_path))
    seen = Found((Evidence(1, "t", "", thumbnail=images.put(scene("red"))),), "p")
    record = cassette(folder, Mode.RECORD, Codec(images))
    await record.answer(call(), World(seen))
    record.flush()
    replay = cassette(folder, Mode.REPLAY, Codec(images))
    folder.delete(part_names(folder)[0])
    with pytest.raises(ProviderError) as caught:
        await replay.answer(call(), World(seen))
    assert caught.value.kind is ErrorKind.TRANSIENT


# --- files ------------------------------------------------------------------------------------------------


async def test_two_processes_record_side_by_side_and_see_each_other_after_a_load(folder):
    one, two = cassette(folder, Mode.RECORD), cassette(folder, Mode.RECORD)
    await one.answer(call("a"), World(found()))
    await two.answer(call("b"), World(found()))
    assert (one.flush(), two.flush()) == (1, 1)
    assert len(part_names(folder)) == 2
    assert (one.load(), one.load()) == (1, 0)
    assert len(one) == 2
    assert await one.answer(call("b"), World(found("no"))) == (found(), True)


async def test_of_two_recordings_of_a_call_the_earliest_holds_whatever_the_order_of_files(folder):
    late = cassette(folder, Mode.RECORD, wall=Wall(200.0))
    early = cassette(folder, Mode.RECORD, wall=Wall(100.0))
    await late.answer(call(), World(found("late")))
    await early.answer(call(), World(found("early")))
    late.flush()
    early.flush()
    assert await cassette(folder, Mode.REPLAY).answer(call(), World(found())) == (found("early"), True)
    late.load()
    assert await late.answer(call(), World(found())) == (found("early"), True)


async def test_parts_are_bounded_written_once_and_flushed_when_there_is_something(folder):
    record = await recorded(folder, *map(str, range(10)), rows_per_part=4)
    assert sorted(len(read_part(folder, name, blobs=False)) for name in part_names(folder)) == [2, 4, 4]
    assert record.flush() == 0
    assert len(part_names(folder)) == 3
    assert len(cassette(folder, Mode.REPLAY)) == 10


async def test_what_could_not_be_written_is_written_the_next_time(folder, monkeypatch):
    record = cassette(folder, Mode.RECORD)
    await record.answer(call(), World(found()))
    with monkeypatch.context() as broken:
        broken.setattr(Folder, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            record.flush()
    assert record.flush() == 1
    assert len(cassette(folder, Mode.REPLAY)) == 1


async def test_the_same_recordings_make_the_same_files(tmp_path):
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    answer = Answer(Kind.TEXT, b'"x"', at=5.0)
    rows = [Recording(call(q).key, "text_search", call(q).text, answer) for q in "abc"]
    names = [write_part(one, rows)[0], write_part(two, reversed(rows))[0], write_part(one, rows)[0]]
    assert len(set(names)) == 1
    assert one.read_bytes(names[0]) == two.read_bytes(names[0])
    assert part_names(one) == [names[0]]


async def test_any_reader_of_parquet_shows_the_calls_in_order_of_their_keys(folder):
    await recorded(folder, "гора", "b", "c")
    table = pq.read_table(folder.local_path / part_names(folder)[0])
    assert table.column("key").to_pylist() == sorted(table.column("key").to_pylist())
    assert any("гора" in text for text in table.column("call").to_pylist())
    assert all(text.startswith('{"evidence"') for text in table.column("body").to_pylist())


@pytest.mark.parametrize("cut", [0, 3, 200, -60, -9])
async def test_a_torn_part_is_told_by_name(folder, cut):
    await recorded(folder, "a")
    name = part_names(folder)[0]
    folder.write_bytes(name, folder.read_bytes(name)[:cut])
    with pytest.raises(PartDamaged, match=name):
        cassette(folder, Mode.REPLAY)


async def test_a_part_with_torn_pages_is_told_by_name(folder):
    await recorded(folder, *map(str, range(50)))
    name = part_names(folder)[0]
    data = bytearray(folder.read_bytes(name))
    data[50:400] = b"\xff" * 350
    folder.write_bytes(name, bytes(data))
    with pytest.raises(PartDamaged, match=name):
        cassette(folder, Mode.REPLAY)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns("body"),
        lambda table: table.replace_schema_metadata({}),
        lambda table: table.set_column(3, "kind", pa.array(["odd"])),
        lambda table: table.set_column(4, "body", pa.array([None], pa.string())),
        lambda table: table.set_column(7, "recorded_at", pa.array([float("nan")])),
        lambda table: table.set_column(7, "recorded_at", pa.array([1e300])),
    ],
)
async def test_a_part_that_others_made_differently_is_told_by_name(folder, change):
    await recorded(folder, "a")
    name = part_names(folder)[0]
    pq.write_table(change(pq.read_table(folder.local_path / name)), folder.local_path / name)
    with pytest.raises(PartDamaged, match=name):
        cassette(folder, Mode.REPLAY)


async def test_other_files_in_the_folder_are_left_alone(folder):
    await recorded(folder, "a")
    folder.write_text("README.md", "what this is")
    folder.write_text("notes.parquet", "not a part")
    assert len(cassette(folder, Mode.REPLAY)) == 1


def test_blobs_of_any_row_are_found_in_files_with_other_row_groups(folder):
    rows = [
        Recording(
            str(i),
            "t",
            "{}",
            Answer(Kind.TEXT, b'""', {f"{i}": bytes([i])} if i % 3 else {}),
            (f"{i}",) if i % 3 else (),
        )
        for i in range(9)
    ]
    name, written = write_part(folder, rows)
    assert [row.key for row in written] == [row.key for row in rows]
    pq.write_table(pq.read_table(folder.local_path / name), folder.local_path / name, row_group_size=2)
    for place, row in enumerate(rows):
        assert read_blobs(folder, name, place) == row.answer.blobs
    assert [row.blob_names for row in read_part(folder, name, blobs=False)] == [row.blob_names for row in rows]
    assert read_part(folder, name, blobs=True) == rows
    with pytest.raises(PartDamaged, match="no row"):
        read_blobs(folder, name, 9)


recordings = st.builds(
    lambda key, at, body: Recording(key, "t", "{}", Answer(Kind.TEXT, body.encode(), at=at)),
    st.sampled_from("abc"),
    st.floats(0, 10),
    st.sampled_from(['"x"', '"y"']),
)


@given(st.lists(recordings), st.randoms(use_true_random=False))
def test_which_recording_holds_does_not_depend_on_the_order_in_which_they_are_met(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    best = earliest(rows)
    assert earliest(shuffled) == best
    assert list(best) == sorted({row.key for row in rows})
    assert all(row.answer.at >= best[row.key].answer.at for row in rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["ask", "flush", "load"])), max_size=20))
async def test_what_a_recording_process_saw_is_what_replay_gives(tmp_path_factory, steps):
    folder = Folder(tmp_path_factory.mktemp("cassette"))
    record, seen, n = cassette(folder, Mode.RECORD, rows_per_part=2), {}, 0
    for query, step in steps:
        if step == "flush":
            record.flush()
        elif step == "load":
            record.load()
        else:
            n += 1
            value, _ = await record.answer(call(query), World(found(str(n))))
            assert seen.setdefault(query, value) == value
    record.flush()
    replay = cassette(folder, Mode.REPLAY)
    assert len(replay) == len(seen)
    for query, value in seen.items():
        assert await replay.answer(call(query), World(found("live"))) == (value, True)


# --- configuration ----------------------------------------------------------------------------------------


async def test_a_configured_cassette_opens_with_its_recordings(folder):
    await recorded(folder, "a")
    opened = open_cassette(CassetteSettings(Mode.REPLAY, folder.address), Codec())
    assert len(opened) == 1
    assert open_cassette(CassetteSettings(), Codec()).mode is Mode.LIVE


def test_nothing_to_replay_and_no_folder_are_said_at_once(tmp_path):
    with pytest.raises(UserError, match="no recordings"):
        open_cassette(CassetteSettings(Mode.REPLAY, str(tmp_path)), Codec())
    with pytest.raises(UserError, match="needs a folder"):
        Cassette(None, Mode.RECORD, Codec())
    with pytest.raises(ValueError, match="needs a folder"):
        CassetteSettings(Mode.RECORD).check()


def test_the_layout_of_parts_stays_or_every_cassette_is_lost():
    columns = "key tool call kind body blobs provider recorded_at cost_usd latency_s"
    assert " ".join(parts.SCHEMA.names) == columns
    assert parts.LAYOUT == {b"mmsearch": b"cassette 1"}
