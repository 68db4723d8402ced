"""`mmsearch predict` as a person types it: real Ray Data, a real engine, the embedded web; killed, and continued."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.storage import Folder
from tests.slow.commands import Command
from tests.unit.workflows.predict.asked import picture, write
from workflows.predict.parts import Parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # engines, one of them killed: minutes

ROWS = 24
BAD = 5  # the row whose picture is none


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("questions")
    (root / "blue.png").write_bytes(picture("blue", 112))
    forms = [{"bytes": picture("red", 112), "path": None}, {"bytes": None, "path": "blue.png"}]
    rows = [{"id": f"q{i}", "question": f"who founded {i}?", "image": forms[i % 2]} for i in range(ROWS)]
    rows[BAD]["image"] = {"bytes": b"no picture", "path": None}
    return write(root / "questions.parquet", rows, group=5)


def start(config: Path, questions: Path, out: Path, *words: str) -> Command:
    told = ["predict", str(questions), "--out", str(out), "--config", str(config), "predict.save_every_s=0", *words]
    return Command(out.parent / "log", *told)


def test_a_dataset_is_answered_in_its_order_also_after_a_kill_and_then_nothing_is_left_to_do(
    config, questions, tmp_path
):
    out, few = tmp_path / "answers.parquet", "predict.concurrency=1"
    parts = Folder(tmp_path / "answers.parquet.parts")
    with start(config, questions, out, few) as predict:
        predict.until(lambda: len(Parts.in_folder(parts).rows) >= 3, 300)
        predict.kill()
    kept = Parts.in_folder(parts)
    before = {row["id"]: row for table in kept.tables() for row in table.to_pylist()}
    assert 3 <= len(before) < ROWS
    assert not out.exists()

    with start(config, questions, out) as predict:
        told = predict.ends_with(0, 300)
    assert f"{ROWS} questions, {len(before)} of them answered already" in told
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(ROWS)]
    assert {row["id"]: row for row in rows if row["id"] in before} == before
    assert [i for i, row in enumerate(rows) if row["failure"] == "data"] == [BAD]
    assert "no image of a known kind" in rows[BAD]["problem"]
    assert all(row["sampled_tokens"] > 0 for row in rows if row["failure"] != "data")
    assert len({row["weights_version"] for row in rows}) == 1
    assert not parts.exists()

    with start(config, questions, out) as predict:
        assert "all 24 rows are answered already" in predict.ends_with(0, 120)
    with start(config, questions, out, "--checkpoint", "sft") as predict:
        assert "answers of other settings (weights was" in predict.ends_with(2, 120)
    assert json.loads(pq.read_schema(out).metadata[b"mmsearch.predict"])["questions"]["rows"] == ROWS


def test_control_c_stops_it_and_says_that_it_continues(config, questions, tmp_path):
    out = tmp_path / "answers"
    with start(config, questions, out, "predict.concurrency=1") as predict:
        predict.until(lambda: len(Parts.in_folder(Folder(tmp_path / "answers.parts")).rows) >= 1, 300)
        predict.interrupt()
        told = predict.ends_with(130, 60)
    assert "stopped; the same command continues where it was" in told
    assert "Traceback" not in told
