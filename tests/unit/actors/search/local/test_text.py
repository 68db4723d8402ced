"""BM25 over passages of one's own: what is built, what is found, and what a person is told who got it wrong."""

import asyncio
import threading
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.local import text
from actors.search.local.row_file import PASSAGE, RowFile, RowWriter
from actors.search.local.text import LocalTextSearch, build_text_index
from actors.search.seams import ErrorKind, ProviderError, TextQuery
from cluster.errors import UserError
from tests.unit.actors.search.search_world import SENTENCES


def written(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return str(path)


@pytest.fixture
def corpus(tmp_path):
    return written(
        tmp_path / "corpus.parquet",
        title=[f"Page {i}" for i in range(len(SENTENCES))],
        url=[f"https://pages.example/{i}" if i % 2 else None for i in range(len(SENTENCES))],
        text=list(SENTENCES),
    )


@pytest.fixture
def index(tmp_path, corpus):
    build_text_index([corpus], str(tmp_path / "index"))
    return str(tmp_path / "index")


def asked(index, query, k=3, **kwargs):
    engine = LocalTextSearch(index, **kwargs)
    try:
        return asyncio.run(engine.search(TextQuery(query, k)))
    finally:
        asyncio.run(engine.close())


# --- asking ---------------------------------------------------------------------------------------------------


def test_the_passage_that_answers_comes_first_with_title_address_text_and_score(index):
    first, *others = asked(index, "who founded Velmora")
    assert first.title == "Page 0"
    assert first.text == SENTENCES[0]
    assert first.score > 0
    assert all(first.score >= other.score > 0 for other in others)
    assert asked(index, "bicycles in Dorn")[0].url == "https://pages.example/1"


def test_a_title_can_be_found_too(tmp_path):
    corpus = written(tmp_path / "c.parquet", title=["Nothofagus", "Fagus"], text=["a tree", "another tree"])
    build_text_index([corpus], str(tmp_path / "index"))
    assert [hit.title for hit in asked(str(tmp_path / "index"), "nothofagus")] == ["Nothofagus"]


@pytest.mark.parametrize("query", ["", "  ", "the of and", "?!", "xylophonist", "\ud800", "x"])
def test_a_query_without_a_known_word_finds_nothing(index, query):
    assert asked(index, query) == []


def test_more_hits_than_there_are_passages_gives_those_that_match(index):
    hits = asked(index, "Dorn Ostra Prell", k=10_000)
    assert 0 < len(hits) < len(SENTENCES)
    assert all(any(word in hit.text for word in ("Dorn", "Ostra", "Prell")) for hit in hits)
    assert asked(index, "Dorn", k=0) == []


def test_equal_passages_come_in_the_corpuss_order_whatever_k_is(tmp_path):
    texts = ["same words" + " and others" * (i % 3) for i in range(100)]
    corpus = written(tmp_path / "c.parquet", title=[f"p{i}" for i in range(100)], text=texts)
    build_text_index([corpus], str(tmp_path / "index"))
    shortest_first = [f"p{i}" for rest in range(3) for i in range(rest, 100, 3)]
    for k in (1, 7, 50, 99, 100):
        assert [hit.title for hit in asked(str(tmp_path / "index"), "same", k)] == shortest_first[:k]


words = st.lists(st.sampled_from(["sun", "moon", "star", "sea", "sand", "salt"]), min_size=1, max_size=6)


@given(st.lists(words, min_size=1, max_size=12), words, st.integers(1, 15))
def test_scores_and_order_are_those_of_bm25s(tmp_path_factory, passages, query, k):
    folder = tmp_path_factory.mktemp("bm25")
    corpus = [" ".join(passage) for passage in passages]
    build_text_index([written(folder / "c.parquet", text=corpus)], str(folder / "index"))
    reference = bm25s.BM25()
    reference.index(bm25s.tokenize(corpus, stopwords="en", show_progress=False), show_progress=False)
    known = [word for word in query if word in reference.vocab_dict]
    scores = reference.get_scores(known) if known else np.zeros(len(corpus))
    hits = asked(str(folder / "index"), " ".join(query), k)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores[scores > 0], reverse=True)[:k], rel=1e-5)
    assert len({hit.text for hit in hits}) <= len(set(corpus))


def test_the_event_loop_is_free_while_a_question_is_worked_on(index, monkeypatch):
    let_go, answer = threading.Event(), text._answer

    def held(opened, query):
        assert let_go.wait(10)
        return answer(opened, query)

    monkeypatch.setattr(text, "_answer", held)

    async def ask():
        engine = LocalTextSearch(index)
        asking = asyncio.ensure_future(engine.search(TextQuery("Velmora", 1)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not asking.done()
        let_go.set()
        hits = await asking
        await engine.close()
        return hits

    assert asyncio.run(ask())[0].title == "Page 0"


def test_many_questions_at_once_open_the_index_once(index, monkeypatch):
    opened = []
    load = bm25s.BM25.load
    monkeypatch.setattr(bm25s.BM25, "load", lambda *args, **kwargs: opened.append(1) or load(*args, **kwargs))

    async def ask():
        engine = LocalTextSearch(index, threads=4)
        found = await asyncio.gather(*(engine.search(TextQuery("Dorn", 2)) for _ in range(20)))
        await engine.close()
        return found

    assert len({tuple(hits) for hits in asyncio.run(ask())}) == 1
    assert len(opened) == 1


def test_scores_and_passages_are_mapped_and_not_held(index):
    engine = LocalTextSearch(index)
    before = pa.total_allocated_bytes()
    opened = engine.open()
    assert pa.total_allocated_bytes() == before
    assert all(isinstance(opened.index.scores[name], np.memmap) for name in ("data", "indices", "indptr"))


def test_making_an_engine_does_no_io_and_a_missing_index_is_told_at_the_first_question(tmp_path):
    engine = LocalTextSearch(str(tmp_path / "none"))
    with pytest.raises(ProviderError, match="no index at") as caught:
        asyncio.run(engine.search(TextQuery("x", 1)))
    assert caught.value.kind is ErrorKind.SCHEMA  # to ask again is of no use
    with pytest.raises(UserError, match="mmsearch index build"):
        engine.open()
    with pytest.raises(UserError, match="threads is 0"):
        LocalTextSearch("x", threads=0)


def test_an_index_whose_files_are_not_what_they_should_be_is_damaged(index):
    path = f"{index}/passages.arrow"
    with open(path, "rb") as stream:
        size = len(stream.read())
    with open(path, "wb") as stream:
        stream.write(b"x" * size)
    with pytest.raises(UserError, match="damaged"):
        LocalTextSearch(index).open()


# --- building -------------------------------------------------------------------------------------------------


def test_a_missing_address_is_made_from_the_content_and_is_the_same_in_every_index(tmp_path):
    one = written(tmp_path / "one.parquet", title=["A", "B"], text=["first passage", "second passage"])
    two = written(tmp_path / "two.parquet", title=["B", "C"], text=["second passage", "third passage"])
    for source, name in ((one, "i1"), (two, "i2")):
        build_text_index([source], str(tmp_path / name))
    urls = [asked(str(tmp_path / name), "second")[0].url for name in ("i1", "i2")]
    assert urls[0] == urls[1]
    assert urls[0].startswith("local:")
    assert asked(str(tmp_path / "i1"), "first")[0].url != urls[0]


def test_rows_that_say_nothing_are_left_out_and_counted(tmp_path):
    corpus = written(tmp_path / "c.parquet", title=["A", None, "", "D"], text=["first", None, "  ", None])
    manifest = build_text_index([corpus], str(tmp_path / "index"))
    assert (manifest.count, manifest.details["skipped"]) == (2, 2)
    assert RowFile(tmp_path / "index" / "passages.arrow")[1]["title"] == "D"


def test_a_quoted_first_line_is_the_title_where_no_column_has_titles(tmp_path):
    contents = ['"Mont Blanc"\nA mountain.', '"quoted" words go on', "plain"]
    build_text_index([written(tmp_path / "c.parquet", contents=contents)], str(tmp_path / "index"))
    rows = RowFile(tmp_path / "index" / "passages.arrow")
    found = [(rows[i]["title"], rows[i]["text"]) for i in range(3)]
    assert found == [("Mont Blanc", "A mountain."), ("", '"quoted" words go on'), ("", "plain")]


def test_several_files_and_groups_of_rows_are_one_corpus_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BATCH_ROWS", 4)
    (tmp_path / "many").mkdir()
    for part in range(3):
        names = [f"word{part * 7 + i}" for i in range(7)]
        written(tmp_path / "many" / f"{part}.parquet", text=names)
    seen = []
    manifest = build_text_index(
        [str(tmp_path / "many")], str(tmp_path / "index"), progress=lambda done, total: seen.append((done, total))
    )
    rows = RowFile(tmp_path / "index" / "passages.arrow")
    assert [rows[i]["text"] for i in range(len(rows))] == [f"word{i}" for i in range(21)]
    assert manifest.count == 21
    assert seen[-1] == (21, 21)
    assert [hit.text for hit in asked(str(tmp_path / "index"), "word13")] == ["word13"]


def test_the_same_corpus_has_the_same_digest_and_another_has_another(tmp_path, corpus):
    one = build_text_index([corpus], str(tmp_path / "1"))
    two = build_text_index([corpus], str(tmp_path / "2"))
    other = build_text_index([corpus], str(tmp_path / "3"), title_column="text")
    assert one.digest == two.digest != other.digest


def test_stopwords_of_the_index_hold_for_its_queries(tmp_path):
    corpus = written(tmp_path / "c.parquet", text=["the und", "cat und"])
    build_text_index([corpus], str(tmp_path / "en"))
    build_text_index([corpus], str(tmp_path / "de"), stopwords="de")
    build_text_index([corpus], str(tmp_path / "none"), stopwords="")
    assert [len(asked(str(tmp_path / name), "the und")) for name in ("en", "de", "none")] == [2, 1, 2]
    assert asked(str(tmp_path / "en"), "the") == []


def test_nothing_is_left_over_in_an_index(tmp_path, index):
    names = sorted(file.name for file in (tmp_path / "index").rglob("*") if file.is_file())
    assert [name for name in names if "index.json" not in name and "csc" not in name] == [
        "manifest.json",
        "passages.arrow",
    ]
    assert not [name for name in tmp_path.iterdir() if ".part-" in name.name]


def test_what_bm25s_will_need_is_said_before_it_begins(tmp_path, corpus):
    said = []
    build_text_index([corpus], str(tmp_path / "index"), say=said.append)
    assert "12 passages" in said[0]
    assert "GiB of memory" in said[0]


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({"body": ["x"]}, {}, "has no column 'text' for the text; name one: its columns are body"),
        ({"text": ["x"]}, {"text_column": "body"}, "has no column 'body' for the text; its columns are text"),
        ({"text": ["x"]}, {"title_column": "name"}, "has no column 'name' for the title"),
        ({"text": ["x"]}, {"url_column": "link"}, "has no column 'link' for the address"),
        ({"text": [1, 2]}, {}, "Column 'text' of .* holds int64, and text is needed"),
        ({"text": [["x"]]}, {}, "text is needed"),
        ({"text": ["?", "the"]}, {}, "There is no word in column 'text'"),
        ({"text": pa.array([], pa.string())}, {}, "There is no word"),
        ({"text": ["x y"]}, {"stopwords": "tlh"}, "no stopwords for 'tlh'"),
    ],
)
def test_a_corpus_that_is_not_what_it_should_be_is_told_by_file_and_column(tmp_path, columns, options, told):
    corpus = written(tmp_path / "c.parquet", **columns)
    with pytest.raises(UserError, match=told):
        build_text_index([corpus], str(tmp_path / "index"), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["c.parquet"]


def test_files_that_are_missing_torn_or_no_parquet_are_told_by_name(tmp_path, corpus):
    with pytest.raises(UserError, match=r"no Parquet files at .*nowhere"):
        build_text_index([str(tmp_path / "nowhere")], str(tmp_path / "index"))
    with pytest.raises(UserError, match="at least one"):
        build_text_index([], str(tmp_path / "index"))
    (tmp_path / "torn.parquet").write_bytes(Path(corpus).read_bytes()[:-50])
    with pytest.raises(UserError, match=r"torn.parquet is not a Parquet file"):
        build_text_index([corpus, str(tmp_path / "torn.parquet")], str(tmp_path / "index"))


def test_a_file_that_breaks_off_in_the_middle_stops_the_build(tmp_path, corpus):
    data = bytearray(Path(corpus).read_bytes())
    data[4:400] = b"\xff" * 396
    (tmp_path / "corpus.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"corpus.parquet cannot be read"):
        build_text_index([corpus], str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


# --- rows -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 25), st.integers(1, 7))
def test_rows_come_back_by_number_however_they_were_batched(tmp_path_factory, count, batch_rows):
    path = tmp_path_factory.mktemp("rows") / "rows.arrow"
    with RowWriter(path, PASSAGE, batch_rows) as writer:
        for i in range(count):
            writer.add(title=f"t{i}", url=f"u{i}", text=None)
    rows = RowFile(path)
    assert len(rows) == writer.count == count
    assert [rows[i]["title"] for i in range(count)] == [f"t{i}" for i in range(count)]
    for outside in (-1, count):
        with pytest.raises(IndexError):
            rows[outside]
