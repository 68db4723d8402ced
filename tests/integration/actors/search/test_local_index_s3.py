"""A local index that was built into object storage and is searched from a copy."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.search.local.text import LocalTextSearch, build_text_index
from actors.search.seams import TextQuery
from cluster.errors import UserError
from cluster.storage import Folder


def corpus(folder: Path) -> str:
    rows = {"title": ["Velmora", "Quill"], "text": ["Velmora was founded by Ilse Dorn.", "Quill is a brewery."]}
    pq.write_table(pa.table(rows), folder / "corpus.parquet")
    return str(folder / "corpus.parquet")


async def test_an_index_in_a_bucket_is_copied_once_and_answers(s3_bucket, tmp_path):
    build_text_index([corpus(tmp_path)], f"{s3_bucket}/index")
    copies = str(tmp_path / "copies")
    for _ in range(2):
        engine = LocalTextSearch(f"{s3_bucket}/index", copies=copies)
        await engine.prepare()
        hits = await engine.search(TextQuery("who founded Velmora", 1))
        await engine.close()
        assert [hit.title for hit in hits] == ["Velmora"]
        for name in (bucket := Folder(f"{s3_bucket}/index")).files():
            if name != "manifest.json":
                bucket.delete(name)  # the second time, the copy has to do


async def test_a_bucket_without_an_index_is_said(s3_bucket, tmp_path):
    with pytest.raises(UserError, match="no index"):
        await LocalTextSearch(f"{s3_bucket}/nothing", copies=str(tmp_path)).prepare()
