"""What `mmsearch index` does with the words it is given."""

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from actors.search.build import endpoint
from actors.search.settings import ProviderSettings
from cluster.errors import UserError
from workflows import index
from workflows.index import build, info


@pytest.fixture
def corpus(tmp_path):
    pq.write_table(pa.table({"title": ["A", "B"], "body": ["red apples", "blue plums"]}), tmp_path / "c.parquet")
    return str(tmp_path / "c.parquet")


def quiet():
    return Console(file=io.StringIO(), width=200)


def printed(console):
    return console.file.getvalue()


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def test_an_index_of_passages_is_built_and_its_use_is_said(tmp_path, corpus):
    console = quiet()
    manifest = build("text", [corpus], str(tmp_path / "index"), {"text_column": "body"}, console=console)
    assert (manifest.kind, manifest.count) == ("text", 2)
    assert "2 rows" in printed(console)
    assert (
        f"search.text=[{{path: 'actors.search.local.text:LocalTextSearch', kwargs: {{folder: '{tmp_path}/index'}}}}]"
        in (printed(console))
    )


def test_an_index_of_pictures_is_built_from_vectors(tmp_path):
    columns = {"picture": [png("red"), png("blue")], "name": ["a", "b"], "v": [[1.0, 0.0], [0.0, 1.0]]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    options = {"image_column": "picture", "title_column": "name", "vector_column": "v", "index": "flat"}
    manifest = build("image", [str(tmp_path / "p.parquet")], str(tmp_path / "index"), options, console=quiet())
    assert (manifest.kind, manifest.count, manifest.details["dim"]) == ("image", 2, 2)


def test_a_cache_is_imported_with_its_questions(tmp_path):
    pq.write_table(pa.table({"data_id": ["q1"], "images": [[{"bytes": png("red")}]]}), tmp_path / "q.parquet")
    entry = {"tool_returned_web_title_list": ["t"], "tool_returned_images_urls": ["https://a.example"]}
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"q1": entry}))
    words = ("fvqa", [str(tmp_path / "c.pkl")], str(tmp_path / "index"))
    manifest = build(*words, {"questions": [str(tmp_path / "q.parquet")]}, console=quiet())
    assert (manifest.kind, manifest.count) == ("image_cache", 1)
    with pytest.raises(UserError, match="--questions"):
        build(*words, force=True, console=quiet())


def test_options_that_were_not_given_are_not_looked_at(tmp_path, corpus):
    options = dict.fromkeys((*index.OPTIONS["image"], *index.OPTIONS["fvqa"]))
    build("text", [corpus], str(tmp_path / "index"), {**options, "text_column": "body"}, console=quiet())


def test_an_option_of_another_kind_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="--model is not for an index of kind text, but for image"):
        build("text", ["nowhere"], str(tmp_path / "index"), {"model": "m"}, console=quiet())
    with pytest.raises(UserError, match=r"--thumbnail-side is not .* kind text, but for image and fvqa"):
        build("text", ["nowhere"], str(tmp_path / "index"), {"thumbnail_side": 5}, console=quiet())
    with pytest.raises(UserError, match="no index of kind 'words'"):
        build("words", ["nowhere"], str(tmp_path / "index"), console=quiet())


def test_an_index_is_not_replaced_without_force(tmp_path, corpus):
    def again(**kwargs):
        return build("text", [corpus], str(tmp_path / "index"), {"text_column": "body"}, console=quiet(), **kwargs)

    first = again()
    with pytest.raises(UserError, match="--force"):
        again()
    assert again(force=True).digest == first.digest


def test_every_option_is_one_that_its_builder_takes():
    import inspect

    from actors.search.local.fvqa_cache import import_fvqa_cache
    from actors.search.local.image_index import build_image_index
    from actors.search.local.picture_rows import Columns
    from actors.search.local.text import build_text_index

    for names, taker in (
        (index._TEXT, build_text_index),
        (index._IMAGE, build_image_index),
        (index._COLUMNS, Columns),
        (index._FVQA, import_fvqa_cache),
    ):
        assert set(names.values()) <= set(inspect.signature(taker).parameters)


def test_every_engine_that_is_named_can_be_made_from_a_configuration(tmp_path):
    for _, path in index.ENGINES.values():
        made = endpoint(ProviderSettings(path, {"folder": str(tmp_path / "none")}))
        assert made.name == path.partition(":")[2]


def test_what_is_in_an_index_is_printed_for_people_and_for_programs(tmp_path, corpus, capsys):
    manifest = build("text", [corpus], str(tmp_path / "index"), {"text_column": "body"}, console=quiet())
    info(str(tmp_path / "index"))
    told = capsys.readouterr().out
    for words in (
        "an index of passages, 2 rows",
        "columns: text=body, title=title",
        manifest.digest,
        "LocalTextSearch",
    ):
        assert words in told
    info(str(tmp_path / "index"), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["count"], found["folder"]) == ("text", 2, str(tmp_path / "index"))


def test_no_index_and_a_damaged_one_are_told(tmp_path, corpus):
    with pytest.raises(UserError, match="no index at"):
        info(str(tmp_path / "none"))
    build("text", [corpus], str(tmp_path / "index"), {"text_column": "body"}, console=quiet())
    (tmp_path / "index" / "passages.arrow").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged: passages.arrow"):
        info(str(tmp_path / "index"))


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(index.time, "monotonic", lambda: now)
    console = quiet()
    with index._Watch(console) as watch:
        for done in range(0, 100, 10):
            now = float(done) / 2
            watch.rows(done, 100)
    assert [line for line in printed(console).splitlines() if line] == [
        "index: 30 of 100 rows",
        "index: 60 of 100 rows",
        "index: 90 of 100 rows",
    ]
