"""Rows become questions; what is no question is dropped, counted and listed."""

import hashlib
import io
import json
import threading
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.agent.seams import ImageRefused
from actors.agent.trajectory import ImageRef, Label, Question
from cluster.errors import UserError
from cluster.storage import Folder
from workflows.dataset.schema import QUESTIONS, question_row
from workflows.grpo.manifest import read, versions, write
from workflows.grpo.questions import load_questions


class Images:
    """It is asked whether it has a picture, and never for the picture."""

    def __init__(self):
        self.blobs, self.asked = {}, []

    def put(self, data):
        if not data.startswith(b"png"):
            raise ImageRefused("not an image")
        ref = ImageRef(hashlib.sha256(data).hexdigest(), 8, 8)
        self.blobs[ref.sha256] = data
        return ref

    def get(self, ref):
        raise AssertionError("a question needs no bytes")

    def has(self, ref):
        self.asked.append(ref)
        return ref.sha256 in self.blobs


def row(name, **changes):
    return {
        "data_id": name,
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>Who founded it?"}],
        "images": [{"bytes": b"png" + name.encode()}],
        "reward_model": {"ground_truth": "Ana", "candidate_answers": json.dumps(["Ana", "Anna"])},
        "data_source": "fvqa_mmsearch_r1",
        "category": "founder",
        "kind": "image_text",
        "designed_label": "required",
        "measured_label": None,
        **changes,
    }


def shard(folder, name, rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    folder.write_bytes(name, sink.getvalue())


def test_a_row_becomes_a_question(tmp_path):
    folder = Folder(tmp_path)
    shard(folder, "00.parquet", [row("a")])
    loaded = load_questions(folder, Images())
    q = loaded.by_id["a"]
    assert (q.text, q.answers, q.kind, q.category) == ("Who founded it?", ("Ana", "Anna"), "image_text", "founder")
    assert (q.designed_label, q.measured_label) == (Label.REQUIRED, Label.UNKNOWN)
    assert len(q.images) == 1
    assert loaded.dropped == 0


def test_rows_of_fvqa_without_our_columns_are_questions_too(tmp_path):
    folder = Folder(tmp_path)
    ours = ("kind", "designed_label", "measured_label", "category")
    shard(folder, "00.parquet", [{k: v for k, v in row("a").items() if k not in ours}])
    bare = load_questions(folder, Images()).by_id["a"]
    assert (bare.kind, bare.first_tools, bare.tags) == ("", (), ())


@pytest.mark.parametrize("others", [None, "animals", [{"name": "animal"}], 3])
def test_what_a_foreign_file_calls_tags_is_none_of_ours_unless_it_is_a_list_of_words(tmp_path, others):
    shard(Folder(tmp_path), "00.parquet", [row("a", tags=others)])
    assert load_questions(Folder(tmp_path), Images()).by_id["a"].tags == ()
    shard(Folder(tmp_path), "00.parquet", [row("a", tags=["animal"], first_tools=["none"])])
    asked = load_questions(Folder(tmp_path), Images()).by_id["a"]
    assert (asked.tags, asked.first_tools) == (("animal",), ("none",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_id": None}, "data_id is None"),
        ({"prompt": [{"role": "user", "content": "<image>"}]}, "no text"),
        ({"images": [{"bytes": b"gif"}]}, "image 0: not an image"),
        ({"images": [{"bytes": None}]}, "image 0 has no bytes"),
        ({"reward_model": {"ground_truth": "", "candidate_answers": "[]"}}, "no answer"),
        ({"reward_model": {"ground_truth": "x", "candidate_answers": "[x"}}, "not JSON"),
        ({"designed_label": "sometimes"}, "accepted: required, free, unknown"),
        ({"first_tools": ["guess"]}, "accepted: none, text_search, image_search, crop"),
        ({"data_id": "good"}, "occurs twice"),
    ],
)
def test_what_is_no_question_is_dropped_counted_and_listed(tmp_path, change, reason):
    folder = Folder(tmp_path)
    shard(folder, "00.parquet", [row("good")])
    shard(folder, "01.parquet", [row("bad", **change)])
    loaded = load_questions(folder, Images())
    assert list(loaded.by_id) == ["good"]
    assert loaded.dropped == 1
    assert reason in loaded.reasons[0]
    assert loaded.reasons[0].startswith("01.parquet row 0")


@pytest.mark.parametrize("bytes_in_the_row", [True, False])
def test_what_the_dataset_stage_writes_comes_back_the_same(tmp_path, bytes_in_the_row):
    images, folder = Images(), Folder(tmp_path)
    picture = b"png of a star"
    question = Question(
        "train-0", "Who founded the red star?", (images.put(picture),), ("Ana", "Anna"), Label.REQUIRED, Label.FREE,
        "founder", "image_text", "embedded",
    )  # fmt: skip
    table = pa.Table.from_pylist([question_row(question, [picture if bytes_in_the_row else None])], schema=QUESTIONS)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    folder.write_bytes("00.parquet", sink.getvalue())
    assert load_questions(folder, images).by_id == {"train-0": question}
    if not bytes_in_the_row:
        with pytest.raises(UserError, match=rf"image 0, {question.images[0].sha256[:12]}, cannot be found"):
            load_questions(folder, Images())


def test_pictures_that_lie_elsewhere_are_asked_for_many_at_a_time(tmp_path):
    class FarImages(Images):
        """It answers when so many are asked for."""

        def __init__(self, at_once):
            super().__init__()
            self.met = threading.Barrier(at_once, timeout=30)

        def has(self, ref):
            self.met.wait()
            return super().has(ref)

    images = FarImages(8)
    refs = [asdict(images.put(b"png" + bytes([i]))) for i in range(8)]
    rows = [row(f"q{i}", images=[{"bytes": None}], image_refs=[ref]) for i, ref in enumerate(refs)]
    shard(Folder(tmp_path), "00.parquet", rows)
    loaded = load_questions(Folder(tmp_path), images)
    assert [asdict(q.images[0]) for q in loaded.by_id.values()] == refs
    assert len(images.asked) == 8  # each once


def test_a_torn_shard_costs_its_own_rows_only(tmp_path):
    folder = Folder(tmp_path)
    shard(folder, "00.parquet", [row("a")])
    folder.write_bytes("01.parquet", folder.read_bytes("00.parquet")[:-30])
    loaded = load_questions(folder, Images())
    assert (list(loaded.by_id), loaded.dropped) == (["a"], 1)
    assert "01.parquet: unreadable" in loaded.reasons[0]


def test_no_questions_at_all_is_the_persons_problem(tmp_path):
    with pytest.raises(UserError, match="build the dataset first"):
        load_questions(Folder(tmp_path / "none"), Images())
    shard(Folder(tmp_path), "00.parquet", [row("a", data_id=" ")])
    with pytest.raises(UserError, match="the first problem"):
        load_questions(Folder(tmp_path), Images())


def test_a_fingerprint_tells_new_content_at_an_old_address(tmp_path):
    folder = Folder(tmp_path)
    folder.write_bytes("model.safetensors", b"a" * 100)
    before = folder.fingerprint(".safetensors")
    folder.write_bytes("notes.txt", b"irrelevant")
    assert folder.fingerprint(".safetensors") == before
    folder.write_bytes("model.safetensors", b"a" * 99 + b"b")
    assert folder.fingerprint(".safetensors") != before


def test_the_manifest_names_versions_and_facts(tmp_path):
    folder = Folder(tmp_path)
    assert read(folder) == {}
    write(folder, seed=3, complete=True)
    assert read(folder) == {"versions": versions(), "seed": 3, "complete": True}
    assert "torch" in read(folder)["versions"]
