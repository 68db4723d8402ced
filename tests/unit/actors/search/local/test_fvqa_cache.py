"""MMSearch-R1's cache, imported without running it, answers for the pictures of its questions and for no others."""

import asyncio
import io
import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actors.search.local import fvqa_cache, pixels
from actors.search.local.fvqa_cache import CachedImageSearch, import_fvqa_cache, read_cache
from actors.search.local.restricted_pickle import Bounds
from actors.search.seams import ErrorKind, ImageQuery, ProviderError
from cluster.errors import UserError
from tests.unit.actors.search.local.pictures import encoded, noise


def entry(titles, pictures):
    return {"tool_returned_web_title_list": titles, "tool_returned_images_urls": pictures}


def jpeg(picture):
    """As a program has it that opened a file: its class is the format's."""
    return Image.open(io.BytesIO(encoded(picture, "JPEG")))


ENTRIES = {
    "fvqa_train_0": entry(["First", "Second", "Third"], ["https://thumbs.example/1", noise(50), jpeg(noise(51))]),
    "fvqa_train_1": entry(["Only a title"], []),
    "fvqa_train_2": entry([], []),
    "fvqa_train_9": entry(["Nobody asks"], ["https://thumbs.example/9"]),
}


@pytest.fixture
def questions(tmp_path):
    """Questions 0 to 4; the picture of 4 is that of 0, the one of 3 is torn."""
    pictures = [encoded(noise(0)), encoded(noise(1)), encoded(noise(2)), b"torn", encoded(noise(0), "BMP")]
    columns = {
        "data_id": [f"fvqa_train_{i}" for i in range(5)],
        "images": [[{"bytes": data}] for data in pictures],
        "category": ["search_required"] * 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "fvqa.parquet")
    return str(tmp_path / "fvqa.parquet")


def saved(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return str(path)


@pytest.fixture
def index(tmp_path, questions):
    cache = saved(tmp_path / "cache.pkl", ENTRIES)
    import_fvqa_cache([cache], [questions], str(tmp_path / "index"), thumbnail_side=30)
    return str(tmp_path / "index")


def asked(index, picture, k=5, **kwargs):
    engine = CachedImageSearch(index, **kwargs)
    try:
        data = picture if isinstance(picture, bytes) else encoded(picture)
        return asyncio.run(engine.search(ImageQuery(data, k)))
    finally:
        asyncio.run(engine.close())


# --- asking ---------------------------------------------------------------------------------------------------


def test_a_questions_picture_gets_what_the_cache_has_in_its_order(index):
    hits = asked(index, noise(0))
    assert [hit.title for hit in hits] == ["First", "Second", "Third"]
    assert [hit.score for hit in hits] == [1.0] * 3
    assert hits[0].url == "https://thumbs.example/1"
    assert hits[0].thumbnail is None
    assert hits[1].url.startswith("local:")
    small = pixels.decoded(hits[1].thumbnail)
    assert max(small.size) == 30
    assert (pixels.dhash(small) ^ pixels.dhash(noise(50))).bit_count() <= 8
    assert hits[2].thumbnail != hits[1].thumbnail
    assert len(asked(index, noise(0), 2)) == 2
    assert asked(index, noise(0), 0) == []


def test_the_same_pixels_in_another_file_are_the_same_picture(index):
    assert len(asked(index, encoded(noise(0), "TIFF"))) == 3
    assert [hit.title for hit in asked(index, noise(1))] == ["Only a title"]


@pytest.mark.parametrize("seed", [2, 3, 77])
def test_any_other_picture_finds_nothing(index, seed):
    assert asked(index, noise(seed)) == []
    assert asked(index, noise(seed), max_distance=8) == []


def test_a_scaled_or_compressed_picture_is_found_only_where_a_distance_is_allowed(index):
    near = encoded(noise(0).resize((40, 30)), "JPEG", quality=85)
    assert asked(index, near) == []
    hits = asked(index, near, max_distance=8)
    assert [hit.title for hit in hits] == ["First", "Second", "Third"]
    assert 1 - 8 / 64 <= hits[0].score <= 1


def test_a_picture_without_structure_is_never_taken_for_another(tmp_path):
    columns = {"data_id": ["a"], "images": [[{"bytes": encoded(Image.new("RGB", (20, 20), "red"))}]]}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    cache = saved(tmp_path / "c.pkl", {"a": entry(["Red"], [])})
    import_fvqa_cache([cache], [str(tmp_path / "q.parquet")], str(tmp_path / "index"))
    assert asked(str(tmp_path / "index"), Image.new("RGB", (20, 20), "blue"), max_distance=16) == []
    edge = Image.new("RGB", (9, 8), "grey")
    edge.paste("white", (0, 0, 1, 8))  # eight bits of 64: enough to be compared, but not with nothing
    assert asked(str(tmp_path / "index"), edge, max_distance=16) == []
    assert len(asked(str(tmp_path / "index"), Image.new("RGB", (20, 20), "red"))) == 1


def test_what_is_no_picture_or_no_index_is_refused(index, tmp_path):
    with pytest.raises(ProviderError) as caught:
        asked(index, b"no picture")
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    with pytest.raises(ProviderError, match="no index at") as caught:
        asked(str(tmp_path / "none"), noise(1))
    assert caught.value.kind is ErrorKind.SCHEMA
    with pytest.raises(UserError, match=r"max_distance is 40 and must be in 0\.\.16"):
        CachedImageSearch(index, max_distance=40)


# --- importing ------------------------------------------------------------------------------------------------


def test_what_met_and_what_did_not_is_counted(tmp_path, questions):
    said, seen = [], []
    manifest = import_fvqa_cache(
        [saved(tmp_path / "cache.pkl", ENTRIES)],
        [questions],
        str(tmp_path / "index"),
        say=said.append,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert manifest.count == 2
    details = {key: manifest.details[key] for key in manifest.details if key not in ("sources", "thumbnail_side")}
    assert details == {
        "hits": 4,
        "entries_without_question": 1,
        "questions_without_entry": 2,
        "pictures_again": 0,
    }
    assert "4 entries" in said[0]
    assert seen[-1] == (5, 5)


def test_of_questions_with_one_picture_the_first_with_hits_counts(tmp_path, questions):
    cache = saved(tmp_path / "c.pkl", {"fvqa_train_0": entry(["one"], []), "fvqa_train_4": entry(["two"], [])})
    manifest = import_fvqa_cache([cache], [questions], str(tmp_path / "index"))
    assert (manifest.count, manifest.details["pictures_again"], manifest.details["hits"]) == (1, 1, 1)
    assert [hit.title for hit in asked(str(tmp_path / "index"), noise(0))] == ["one"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_cache_of_any_protocol_is_read(tmp_path, protocol):
    found = read_cache(saved(tmp_path / "cache.pkl", ENTRIES, protocol))
    assert found.keys() == ENTRIES.keys()
    first, second, third = found["fvqa_train_0"]
    assert (first.url, first.picture) == ("https://thumbs.example/1", None)
    assert second.picture.tobytes() == noise(50).tobytes()
    assert third.picture.tobytes() == jpeg(noise(51)).convert("RGB").tobytes()
    assert found["fvqa_train_2"] == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pictures_of_every_mode_come_out_with_their_colours(tmp_path, mode):
    picture = noise(3).convert(mode)
    found = read_cache(saved(tmp_path / "c.pkl", {"a": entry(["x"], [picture])}))["a"][0].picture
    assert found.tobytes() == picture.convert("RGB").tobytes()


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path, monkeypatch):
    cache = saved(tmp_path / "c.pkl", {"a": entry(["x"], [noise(3)])})
    monkeypatch.setattr(fvqa_cache, "MAX_PIXELS", 64 * 48 - 1)
    assert read_cache(cache)["a"][0].picture is None
    monkeypatch.setattr(fvqa_cache, "MAX_PIXELS", 64 * 48)
    assert read_cache(cache)["a"][0].picture is not None


def test_the_state_of_an_older_pillow_is_read_too(tmp_path):
    """Pillow 11 wrote five items, later ones write seven and eight for JPEG."""
    state = b"(lp0\n(dp1\naVRGB\np2\na(I1\nI1\ntp3\naNac_codecs\nencode\n(Vabc\nVlatin1\ntRa"
    picture = (
        b"ccopyreg\n_reconstructor\n(cPIL.JpegImagePlugin\nJpegImageFile\nc__builtin__\nobject\nNtR" + state + b"b"
    )
    start = b"(dVa\n(dV" + b"tool_returned_web_title_list\n(lVtitle\nasVtool_returned_images_urls\n(l"
    (tmp_path / "c.pkl").write_bytes(start + picture + b"ass.")
    assert read_cache(str(tmp_path / "c.pkl"))["a"][0].picture.tobytes() == b"abc"


def test_a_json_release_with_files_is_read(tmp_path):
    (tmp_path / "thumbs").mkdir()
    (tmp_path / "thumbs" / "a.png").write_bytes(encoded(noise(5)))
    (tmp_path / "thumbs" / "torn.png").write_bytes(b"torn")
    paths = ["thumbs/a.png", "thumbs/gone.png", "thumbs/torn.png", None]
    cache = {"a": {"tool_returned_web_title": list("wxyz"), "cached_images_path": paths}}
    (tmp_path / "cache.json").write_text(json.dumps(cache))
    hits = read_cache(str(tmp_path / "cache.json"))["a"]
    assert [hit.title for hit in hits] == list("wxyz")
    assert [hit.picture is not None for hit in hits] == [True, False, False, False]
    elsewhere = read_cache(str(tmp_path / "cache.json"), str(tmp_path / "thumbs"))["a"]
    assert all(hit.picture is None for hit in elsewhere)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://a.example/1", True),
        ("http://a.example/1", True),
        ("data:image/png;base64,AA", False),
        ("file:///etc/passwd", False),
        ("ftp://a.example/1", False),
        ("", False),
        (None, False),
    ],
)
def test_only_addresses_of_the_web_are_kept(tmp_path, url, kept):
    hit = read_cache(saved(tmp_path / "c.pkl", {"a": entry(["x"], [url])}))["a"][0]
    assert (hit.url, hit.picture) == (url if kept else "", None)


def test_hits_without_title_and_picture_are_left_out(tmp_path):
    found = read_cache(saved(tmp_path / "c.pkl", {"a": entry(["", None, " t "], ["https://a.example", noise(1)])}))
    assert [(hit.title, hit.picture is not None) for hit in found["a"]] == [("", True), ("t", False)]


def tampered(**changes):
    """A picture whose pickled state is not what Pillow writes."""

    class Picture(Image.Image):
        def __getstate__(self):
            state = dict(zip(("info", "mode", "size", "palette", "data"), super().__getstate__(), strict=True))
            return list({**state, **changes}.values())

    Picture.__module__, Picture.__qualname__ = "PIL.Image", "Image"
    made = Picture()
    made.__dict__.update(noise(1).__dict__)
    return made


def pickled(value, monkeypatch):
    """As pickle writes what claims to be of Pillow's class."""
    monkeypatch.setattr(Image, "Image", type(value))
    try:
        return pickle.dumps({"a": entry(["x"], [value])})
    finally:
        monkeypatch.undo()


@pytest.mark.parametrize("changes", [{"data": b"few"}, {"size": (7000, 7000)}, {"size": (7, 9)}])
def test_a_picture_whose_bytes_do_not_do_is_left_out_and_its_title_stays(tmp_path, monkeypatch, changes):
    (tmp_path / "c.pkl").write_bytes(pickled(tampered(**changes), monkeypatch))
    assert [(hit.title, hit.picture) for hit in read_cache(str(tmp_path / "c.pkl"))["a"]] == [("x", None)]


@pytest.mark.parametrize(
    "changes", [{"mode": "HSB"}, {"size": (0, 5)}, {"size": "ab"}, {"size": (1.5, 2)}, {"data": "x"}]
)
def test_a_picture_in_a_form_that_is_not_known_is_refused(tmp_path, monkeypatch, changes):
    (tmp_path / "c.pkl").write_bytes(pickled(tampered(**changes), monkeypatch))
    with pytest.raises(UserError, match="entry 'a' has a picture in a form that is not known"):
        read_cache(str(tmp_path / "c.pkl"))


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [Evil(), {"a": Evil()}, {"a": entry(["x"], [Evil()])}, {"a": entry([Evil()], [])}])
def test_a_cache_that_would_run_something_is_refused_and_nothing_runs(
    tmp_path, questions, monkeypatch, value, protocol
):
    monkeypatch.chdir(tmp_path)
    cache = saved(tmp_path / "c.pkl", value, protocol)
    with pytest.raises(UserError, match=r"c\.pkl is refused: it names '(posix|nt)\.system'.*Nothing in it was run"):
        import_fvqa_cache([cache], [questions], str(tmp_path / "index"))
    assert sorted(os.listdir(tmp_path)) == ["c.pkl", "fvqa.parquet"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "is not an image-search cache: a table"),
        ({}, "is not an image-search cache: a table"),
        ({1: entry([], [])}, "1 is no data_id"),
        ({"a": []}, "entry 'a' has no list tool_returned_web_title_list or"),
        ({"a": {"tool_returned_web_title_list": ["x"]}}, "no list tool_returned_images_urls or cached_images_path"),
        ({"a": entry("x", [])}, "no list tool_returned_web_title_list"),
        ({"a": entry([1], [])}, "entry 'a' has a title that is no text"),
        ({"a": entry(["x"], [5])}, "entry 'a' has a int for a picture"),
        ({"a": entry(["x"], [{"url": "y"}])}, "entry 'a' has a dict for a picture"),
        ({"a": entry(["x"], ["../../etc/passwd"])}, "entry 'a' names a picture that is not below"),
        ({"a": entry(["x"], ["/etc/passwd"])}, "entry 'a' names a picture that is not below"),
    ],
)
def test_a_cache_in_any_other_form_is_refused_in_one_sentence(tmp_path, value, told):
    with pytest.raises(UserError, match=told):
        read_cache(saved(tmp_path / "c.pkl", value))


def test_files_that_are_missing_torn_or_too_large_are_told(tmp_path, questions):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_cache(str(tmp_path / "none.pkl"))
    cache = saved(tmp_path / "c.pkl", ENTRIES)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_cache(cache, bounds=Bounds(max_bytes=10))
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(ENTRIES)[:-40])
    with pytest.raises(UserError, match="is refused: it is"):
        read_cache(cache)
    for content in ("{", '{"a": ' * 5000, "\udcff".encode("utf-8", "surrogateescape")):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "c.json").write_bytes(data)
        with pytest.raises(UserError, match="is no JSON"):
            read_cache(str(tmp_path / "c.json"))
    with pytest.raises(UserError, match="at least one cache"):
        import_fvqa_cache([], [questions], str(tmp_path / "index"))


def test_questions_that_do_not_fit_are_told_and_leave_nothing(tmp_path, questions):
    cache = saved(tmp_path / "c.pkl", {"other": entry(["x"], [])})
    with pytest.raises(UserError, match=r"No picture in .* belongs to an entry of"):
        import_fvqa_cache([cache], [questions], str(tmp_path / "index"))
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "q.parquet")
    with pytest.raises(UserError, match="no column 'data_id' for the questions' ids; its columns are id"):
        import_fvqa_cache([cache], [str(tmp_path / "q.parquet")], str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()
