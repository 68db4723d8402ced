"""An index of pictures: from files, tables and ready vectors; exact or not; and only with the model that made it."""

import asyncio

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.search.local import image_index, pixels
from actors.search.local.image import LocalImageSearch
from actors.search.local.image_index import build_image_index
from actors.search.local.picture_rows import Columns
from actors.search.seams import ErrorKind, ImageQuery, ProviderError
from cluster.errors import UserError
from tests.unit.actors.search.local.pictures import Shrunk, encoded, noise, tiny_model

COUNT = 12


@pytest.fixture
def table(tmp_path):
    """Pictures with titles and addresses; the bytes of number 7 are no picture."""
    data = [encoded(noise(i)) for i in range(COUNT)]
    data[7] = b"torn"
    columns = {
        "image": data,
        "title": [f"Picture {i}" for i in range(COUNT)],
        "url": [f"https://pictures.example/{i}" if i != 3 else None for i in range(COUNT)],
        "caption": [f"number {i}" for i in range(COUNT)],
    }
    pq.write_table(pa.table(columns), tmp_path / "pictures.parquet", row_group_size=5)
    return str(tmp_path / "pictures.parquet")


@pytest.fixture
def index(tmp_path, table):
    build_image_index([table], str(tmp_path / "index"), embedder=Shrunk(), thumbnail_side=20)
    return str(tmp_path / "index")


def asked(index, picture, k=3, **kwargs):
    engine = LocalImageSearch(index, **{"embedder": Shrunk(), **kwargs})
    try:
        data = picture if isinstance(picture, bytes) else encoded(picture)
        return asyncio.run(engine.search(ImageQuery(data, k)))
    finally:
        asyncio.run(engine.close())


# --- asking ---------------------------------------------------------------------------------------------------


def test_the_same_picture_comes_first_with_all_that_is_known_of_it(index):
    first, *others = asked(index, noise(5).resize((32, 24)))
    assert (first.title, first.url, first.text) == ("Picture 5", "https://pictures.example/5", "number 5")
    assert first.score == pytest.approx(1, abs=0.02)
    assert all(first.score > other.score for other in others)
    assert pixels.decoded(first.thumbnail).size == (20, 15)
    assert asked(index, noise(3), 1)[0].url.startswith("local:")


def test_hits_are_the_nearest_by_cosine_best_first(index):
    embedder, picture = Shrunk(), noise(99)
    there = [i for i in range(COUNT) if i != 7]
    scores = embedder.embed([noise(i) for i in there]) @ embedder.embed([picture])[0]
    expected = [(f"Picture {there[i]}", pytest.approx(scores[i], abs=1e-5)) for i in np.argsort(-scores)]
    found = [(hit.title, hit.score) for hit in asked(index, picture, 100, min_score=-1)]
    assert found == expected
    assert len(asked(index, picture, 4, min_score=-1)) == 4
    assert asked(index, picture, 0) == []


def test_what_is_less_alike_than_demanded_is_no_hit(index):
    assert [hit.title for hit in asked(index, noise(5), COUNT, min_score=0.95)] == ["Picture 5"]
    assert asked(index, noise(4242), COUNT, min_score=0.95) == []


@pytest.mark.parametrize("once", ["title", "url"])
def test_of_several_pictures_of_a_page_only_the_best_comes_where_that_is_wanted(tmp_path, once):
    columns = {
        "image": [encoded(noise(i)) for i in (1, 2, 1, 3)],
        "title": ["a", "b", "a", "c"],
        "url": ["u", "v", "u", "w"],
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    build_image_index([str(tmp_path / "p.parquet")], str(tmp_path / "index"), embedder=Shrunk())
    hits = asked(str(tmp_path / "index"), noise(1), 3, min_score=-1, once=once)
    assert sorted(hit.title for hit in hits) == ["a", "b", "c"]
    assert [hit.title for hit in asked(str(tmp_path / "index"), noise(1), 2, min_score=-1)] == ["a", "a"]


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(noise(1))[:100]])
def test_a_question_that_is_no_picture_is_refused(index, data):
    with pytest.raises(ProviderError, match="cannot be read") as caught:
        asked(index, data)
    assert caught.value.kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_every_kind_of_index_finds_what_is_in_it(tmp_path, kind):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(500, 48)).astype(np.float32))
    vectors = np.load(tmp_path / "v.npy")
    vectors[:COUNT] = Shrunk().embed([noise(i) for i in range(COUNT)])
    np.save(tmp_path / "v.npy", vectors)
    pq.write_table(pa.table({"title": [str(i) for i in range(500)]}), tmp_path / "t.parquet")
    manifest = build_image_index(
        [str(tmp_path / "t.parquet")], str(tmp_path / "index"), vectors=str(tmp_path / "v.npy"), index=kind
    )
    assert manifest.details["index"] == kind
    for i in range(COUNT):
        hit = asked(str(tmp_path / "index"), noise(i), 1)[0]
        assert (hit.title, hit.thumbnail) == (str(i), None)
        assert hit.score == pytest.approx(1, abs=1e-4)


def test_a_large_index_is_not_exact_unless_that_is_asked_for(tmp_path, table):
    build = {"embedder": Shrunk(), "exact_below": 11, "force": True}
    manifest = build_image_index([table], str(tmp_path / "index"), **build)
    assert (manifest.count, manifest.details["index"]) == (11, "hnsw")
    assert (
        build_image_index([table], str(tmp_path / "index"), **{**build, "exact_below": 12}).details["index"] == "flat"
    )
    assert build_image_index([table], str(tmp_path / "index"), **build, index="flat").details["index"] == "flat"


# --- the model ------------------------------------------------------------------------------------------------


def test_a_model_folder_embeds_pictures_and_questions(tmp_path, table):
    model = tiny_model(tmp_path / "model", "clip")
    manifest = build_image_index([table], str(tmp_path / "index"), model=model, device="cpu", batch=4)
    assert (manifest.details["model"], manifest.details["dim"]) == (model, 12)
    for given in ("", model):
        hits = asked(str(tmp_path / "index"), noise(5), 1, embedder=None, model=given, device="cpu")
        assert (hits[0].title, hits[0].score) == ("Picture 5", pytest.approx(1, abs=1e-3))


def test_another_model_than_the_indexs_is_refused_in_words(tmp_path, table):
    model, other = (tiny_model(tmp_path / f"m{seed}", "clip", seed) for seed in (0, 1))
    build_image_index([table], str(tmp_path / "index"), model=model, device="cpu")
    engine = LocalImageSearch(str(tmp_path / "index"), model=other, device="cpu")
    with pytest.raises(UserError, match=r"built with the model .*m0, and .*m1 is another one"):
        engine.open()
    with pytest.raises(ProviderError, match="another one") as caught:
        asyncio.run(engine.search(ImageQuery(encoded(noise(1)), 1)))
    assert caught.value.kind is ErrorKind.SCHEMA


def test_a_model_that_was_moved_is_the_same_one(tmp_path, table):
    model = tiny_model(tmp_path / "model", "clip")
    build_image_index([table], str(tmp_path / "index"), model=model, device="cpu")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no model at"):
        LocalImageSearch(str(tmp_path / "index"), device="cpu").open()
    LocalImageSearch(str(tmp_path / "index"), model=str(tmp_path / "moved"), device="cpu").open()


def test_vectors_of_an_unnamed_model_need_one_that_fits(tmp_path, table):
    vectors = np.ones((COUNT, 7), dtype=np.float32)
    np.save(tmp_path / "v.npy", vectors)
    build_image_index([table], str(tmp_path / "index"), vectors=str(tmp_path / "v.npy"))
    with pytest.raises(UserError, match="without saying of which model"):
        LocalImageSearch(str(tmp_path / "index")).open()
    with pytest.raises(UserError, match="vectors of 7 numbers, and the model shrunk gives 48"):
        LocalImageSearch(str(tmp_path / "index"), embedder=Shrunk()).open()
    with pytest.raises(UserError, match="vectors have 7 numbers, and the model shrunk gives 48"):
        build_image_index([table], str(tmp_path / "i2"), vectors=str(tmp_path / "v.npy"), embedder=Shrunk())


def test_a_setting_that_is_none_is_told():
    with pytest.raises(UserError, match="once is 'page'"):
        LocalImageSearch("x", once="page")


# --- building -------------------------------------------------------------------------------------------------


def test_pictures_that_cannot_be_read_are_left_out_and_counted(index, tmp_path, table):
    manifest = build_image_index([table], str(tmp_path / "again"), embedder=Shrunk())
    assert (manifest.count, manifest.details["skipped"]) == (COUNT - 1, 1)
    titles = {hit.title for hit in asked(index, noise(0), COUNT, min_score=-1)}
    assert titles == {f"Picture {i}" for i in range(COUNT) if i != 7}


def test_rows_and_vectors_stay_together_over_batches_with_gaps(tmp_path, table, monkeypatch):
    monkeypatch.setattr(image_index, "BATCH", 4)
    embedder, seen = Shrunk(), []
    build_image_index(
        [table], str(tmp_path / "index"), embedder=embedder, progress=lambda done, total: seen.append((done, total))
    )
    assert embedder.batches[:3] == [4, 3, 4]
    assert seen == [(4, COUNT), (8, COUNT), (12, COUNT)]
    for i in (0, 6, 8, 11):
        assert asked(str(tmp_path / "index"), noise(i), 1)[0].title == f"Picture {i}"


def test_a_vector_keeps_its_row_though_the_picture_is_torn(tmp_path, table, monkeypatch):
    monkeypatch.setattr(image_index, "BATCH", 5)
    vectors = Shrunk().embed([noise(i) for i in range(COUNT)]) * 3
    np.save(tmp_path / "v.npy", vectors)
    manifest = build_image_index([table], str(tmp_path / "index"), vectors=str(tmp_path / "v.npy"), embedder=Shrunk())
    assert (manifest.count, manifest.details["skipped"], manifest.details["model"]) == (COUNT, 0, "shrunk")
    hits = [asked(str(tmp_path / "index"), noise(i), 1)[0] for i in range(COUNT)]
    assert [hit.title for hit in hits] == [f"Picture {i}" for i in range(COUNT)]
    assert [hit.thumbnail is None for hit in hits] == [i == 7 for i in range(COUNT)]
    assert hits[0].score == pytest.approx(1, abs=1e-5)  # vectors need not be of unit length


def test_vectors_may_be_a_column(tmp_path):
    vectors = Shrunk().embed([noise(i) for i in range(4)])
    columns = {"title": list("abcd"), "v": vectors.tolist()}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    manifest = build_image_index([str(tmp_path / "p.parquet")], str(tmp_path / "index"), columns=Columns(vector="v"))
    assert manifest.count == 4
    assert asked(str(tmp_path / "index"), noise(2), 1)[0].title == "c"


@pytest.mark.parametrize("form", ["bytes", "record", "record of a path", "list", "path", "whole path"])
def test_a_picture_in_a_table_may_be_bytes_a_record_a_list_or_a_path(tmp_path, form):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(encoded(noise(1)))
    cell = {
        "bytes": encoded(noise(1)),
        "record": {"bytes": encoded(noise(1)), "path": "elsewhere.png"},
        "record of a path": {"bytes": None, "path": "files/a.png"},
        "list": [{"bytes": encoded(noise(1))}],
        "path": "files/a.png",
        "whole path": str(tmp_path / "files" / "a.png"),
    }[form]
    pq.write_table(pa.table({"title": ["x"], "images": [cell]}), tmp_path / "p.parquet")
    for source in (tmp_path / "p.parquet", tmp_path):
        build_image_index([str(source)], str(tmp_path / "i"), embedder=Shrunk(), force=True)
        assert asked(str(tmp_path / "i"), noise(1), 1)[0].score == pytest.approx(1, abs=1e-5)
        __import__("shutil").rmtree(tmp_path / "i")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encoded(noise(1)))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"image": [path]}), tmp_path / "in" / "p.parquet")
    with pytest.raises(UserError, match=r"column 'image', row 0 of .*leads out of"):
        build_image_index([str(tmp_path / "in" / "p.parquet")], str(tmp_path / "index"), embedder=Shrunk())


def test_pictures_of_paths_may_lie_elsewhere(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(encoded(noise(1)))
    pq.write_table(pa.table({"path": ["a.png", "gone.png"]}), tmp_path / "p.parquet")
    source, root = [str(tmp_path / "p.parquet")], str(tmp_path / "files")
    manifest = build_image_index(source, str(tmp_path / "i"), embedder=Shrunk(), pictures_root=root)
    assert (manifest.count, manifest.details["skipped"]) == (1, 1)


def test_a_folder_of_picture_files_is_indexed_with_their_names(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "the_red-tower.png").write_bytes(encoded(noise(1)))
    (tmp_path / "in" / "deep" / "B.JPG").write_bytes(encoded(noise(2), "JPEG"))
    (tmp_path / "in" / "torn.png").write_bytes(b"torn")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    manifest = build_image_index([str(tmp_path / "in")], str(tmp_path / "index"), embedder=Shrunk(), thumbnail_side=0)
    assert (manifest.count, manifest.details["skipped"]) == (2, 1)
    hit = asked(str(tmp_path / "index"), noise(1), 1)[0]
    assert (hit.title, hit.thumbnail) == ("the red tower", None)
    assert hit.url.startswith("local:")


def test_the_digest_follows_rows_and_vectors(tmp_path, table):
    def digest(**options):
        options = {"embedder": Shrunk(), "force": True, **options}
        return build_image_index([table], str(tmp_path / "index"), **options).digest

    assert digest() == digest() == digest(index="hnsw")
    assert digest() != digest(thumbnail_side=10)
    assert digest() != digest(embedder=Shrunk(side=3))
    assert digest() != digest(columns=Columns(title="caption"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"embedder": None}, "needs --model, or vectors"),
        ({"index": "lsh"}, "index is 'lsh' and must be one of auto, flat, ivf, hnsw"),
        ({"columns": Columns(image="picture")}, "no column 'picture' for the pictures; its columns are image"),
        ({"columns": Columns(title="name")}, "no column 'name' for the title"),
        ({"columns": Columns(vector="v")}, "no column 'v' for the vectors"),
        ({"columns": Columns(title="image")}, "Column 'image' of .* holds binary, and text is needed"),
        ({"columns": Columns(vector="title")}, "no vector|there is none in column 'title', row 0"),
        ({"columns": Columns(vector="title"), "vectors": "x"}, "not both"),
        ({"vectors": "missing.npy"}, "missing.npy cannot be read as a .npy file"),
    ],
)
def test_what_does_not_fit_is_told_and_leaves_nothing(tmp_path, table, options, told):
    with pytest.raises(UserError, match=told):
        build_image_index([table], str(tmp_path / "index"), **{"embedder": Shrunk(), **options})
    assert [file.name for file in tmp_path.iterdir()] == ["pictures.parquet"]


@pytest.mark.parametrize(
    ("vectors", "told"),
    [
        (np.ones((3, 4)), "holds 3 vectors for 12 rows"),
        (np.ones(12), r"of the shape \[rows, dim\]"),
        (np.ones((12, 4), dtype=np.int32), "floating-point"),
        (np.full((12, 4), np.nan), "not finite"),
        (np.array([{"a": 1}] * 12, dtype=object), "cannot be read as a .npy file"),
    ],
)
def test_vectors_that_do_not_fit_are_told(tmp_path, table, vectors, told):
    np.save(tmp_path / "v.npy", vectors, allow_pickle=True)
    with pytest.raises(UserError, match=told):
        build_image_index([table], str(tmp_path / "index"), vectors=str(tmp_path / "v.npy"))
    assert not (tmp_path / "index").exists()


def test_vectors_of_different_lengths_and_no_readable_picture_are_told(tmp_path):
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="of one length"):
        build_image_index([str(tmp_path / "v.parquet")], str(tmp_path / "index"), columns=Columns(vector="v"))
    pq.write_table(pa.table({"image": [b"torn", None]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match="None of the 2 pictures"):
        build_image_index([str(tmp_path / "p.parquet")], str(tmp_path / "index"), embedder=Shrunk())
    pq.write_table(pa.table({"image": [5]}), tmp_path / "n.parquet")
    with pytest.raises(UserError, match=r"column 'image', row 0 of .* holds int"):
        build_image_index([str(tmp_path / "n.parquet")], str(tmp_path / "index"), embedder=Shrunk())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        build_image_index([str(tmp_path / "empty")], str(tmp_path / "index"), embedder=Shrunk())


def test_an_index_with_a_foreign_file_in_it_is_damaged(index):
    path = f"{index}/vectors.faiss"
    with open(path, "rb") as stream:
        size = len(stream.read())
    with open(path, "wb") as stream:
        stream.write(b"x" * size)
    with pytest.raises(UserError, match="damaged"):
        LocalImageSearch(index, embedder=Shrunk()).open()


def test_a_grey_picture_is_as_good_as_any(index):
    assert len(asked(index, Image.new("L", (5, 5), 3), 2, min_score=-1)) == 2
