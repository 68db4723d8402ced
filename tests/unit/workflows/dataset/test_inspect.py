"""What `mmsearch dataset inspect` says about a dataset that is not as its maker left it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from workflows import settings
from workflows.dataset import inspect

PART = {"rows": 1, "spare": 0, "dropped": {}, "listed": [], "counts": {}, "seconds": 1.0}


@pytest.fixture
def chosen(tmp_path):
    return settings.load(None, [f"run.storage={tmp_path}"])


def refusal(chosen) -> str:
    with pytest.raises(UserError) as caught:
        inspect.run(chosen)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_no_dataset_names_the_command_that_makes_one(chosen):
    assert "build it first (`mmsearch dataset build`)" in refusal(chosen)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"sft": {}}', '{"sft": 3}'])
def test_a_report_that_cannot_be_read_says_what_to_do(chosen, text):
    chosen.run.folder.write_text("dataset/report.json", text)
    assert "report.json cannot be read: build the dataset again" in refusal(chosen)


def test_shards_that_are_gone_are_told(chosen):
    chosen.run.folder.write_json("dataset/report.json", {"sft": PART})
    assert "There are no conversations at" in refusal(chosen)


def test_a_truncated_shard_and_one_of_another_form_are_named(chosen, tmp_path):
    chosen.run.folder.write_json("dataset/report.json", {"sft": PART})
    shard = tmp_path / "dataset/sft/part-0.parquet"
    shard.parent.mkdir()
    pq.write_table(pa.table({"x": [1]}), shard)
    assert "part-0.parquet cannot be read" in refusal(chosen)
    shard.write_bytes(shard.read_bytes()[:-20])
    assert f"delete {shard.parent} and build it again" in refusal(chosen)
