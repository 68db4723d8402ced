"""The miniature with every path of the run on S3: a real server on loopback, and nothing of the run on this disk."""

import json

import boto3
import pytest

from cluster.storage import Folder
from tests.integration.conftest import s3_bucket, s3_server  # noqa: F401 (fixtures)
from tests.slow.commands import ROOT, Command
from workflows.demo import STAGES
from workflows.grpo.recorder import training_steps

pytestmark = pytest.mark.timeout(1500)

SHORT = [
    "pretrain.steps=30", "pretrain.checkpoint_every=15", "pretrain.warmup_steps=5", "dataset.train_questions=200",
    "dataset.test_questions=16", "dataset.conversations=120", "sft.steps=40", "sft.checkpoint_every=20",
    "grpo.steps=4", "grpo.checkpoint_every=2", "grpo.groups_per_step=4", "grpo.group_size=4",
    "grpo.start_check_questions=0", "evaluate.arms=[sft,rl]",
]  # fmt: skip


def test_the_whole_pipeline_runs_on_s3(s3_bucket, s3_server, tmp_path):  # noqa: F811
    before = set((ROOT / "runs").glob("*"))
    words = ["demo", "--config", "miniature", "run.name=on-s3", f"run.storage={s3_bucket}/runs/mini", *SHORT]
    with Command(tmp_path / "log", *words) as demo:
        demo.ends_with(0, 1400)
        print(f"on S3: {demo.seconds:.0f} s")
    run = Folder(f"{s3_bucket}/runs/mini")
    for stage in STAGES:
        assert all(run.exists(output) for output in stage.outputs), stage.name
    steps = training_steps(run / "grpo")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    books = {k.removeprefix("groups_total/"): v for k, v in steps[-1].items() if k.startswith("groups_total/")}
    assert books.pop("admitted") == sum(books.values())
    assert books["trained"] == 16
    assert run.read_json("evaluate/results.json")["arms"].keys() == {"sft", "rl"}
    assert set((ROOT / "runs").glob("*")) == before

    pages = boto3.client("s3", endpoint_url=s3_server).get_paginator("list_objects_v2")
    bucket = s3_bucket.removeprefix("s3://")
    names = [item["Key"] for page in pages.paginate(Bucket=bucket) for item in page["Contents"]]
    assert all(name.startswith("runs/mini/") for name in names)
    marker = [name for name in names if name.endswith("COMPLETE.json") and "/grpo/checkpoints/" in name]
    assert marker
    assert json.loads((run / "grpo").read_text("manifest.json"))["complete"]
