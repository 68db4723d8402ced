"""Pre-training, dataset and SFT with everything on S3: nothing of the run is on this machine's disk but caches."""

import io

import pytest
from rich.console import Console

from actors.model.load import local_model
from cluster.runtime import RuntimeSettings, connect
from cluster.telemetry import read as metrics_of
from tests.integration.conftest import s3_bucket, s3_server  # noqa: F401 (fixtures)
from tests.integration.workflows.test_pretrain_dataset_sft import SMALL
from workflows import sft
from workflows.dataset import build, inspect
from workflows.embedded import pretrain
from workflows.grpo.questions import load_questions
from workflows.run_folder import RunFolder
from workflows.settings import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_run_on_s3_goes_from_nothing_to_a_fine_tuned_policy(s3_bucket):  # noqa: F811
    console = Console(file=io.StringIO(), width=140)
    settings = load(None, [f"run.storage={s3_bucket}/runs/small", *SMALL, "sft.steps=6", "sft.checkpoint_every=2"])
    folder = RunFolder(settings.run.folder)
    # after the server's variables are set, so that Ray's workers have them, too
    with connect(RuntimeSettings(address="local", num_cpus=2, oversubscribe=True, object_store_mib=256)):
        pretrain.run(settings, console)
        build.run(settings, console)
        questions = load_questions(folder.questions("train"), folder.images())
        sft.run(settings, console)
    assert (len(questions.by_id), questions.dropped) == (60, 0)
    assert folder.sft.read_json(sft.STATE)["complete"]
    assert [line["step"] for line in metrics_of(folder.sft)] == [1, 2, 3, 4, 5, 6]
    assert any("checkpoint_" in name for name in (folder.sft / sft.CHECKPOINTS).list())
    assert (local_model(folder.sft_export.address) / "config.json").is_file()
    inspect.run(settings, console)
    assert "searches in a conversation" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
