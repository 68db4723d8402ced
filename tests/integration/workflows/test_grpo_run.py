"""A GRPO run with every part real: Ray, vLLM, DeepSpeed, the embedded web; only the model is tiny and knows nothing."""

import io
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from actors.agent.episode import Limits
from actors.agent.prompts import PRESETS
from actors.agent.protocol import TAGS
from actors.learner.settings import BackendSettings, LearnerSettings
from actors.model.images import BlobImages
from actors.model.load import check_model_folder, load_policy
from actors.model.tiny import save_tiny
from actors.reward.settings import RewardSettings
from actors.sampler.settings import EngineSettings
from actors.search.settings import ProviderSettings, SearchSettings
from cluster.blobs import BlobStore
from cluster.errors import UserError
from cluster.runtime import RuntimeSettings
from cluster.storage import Folder
from cluster.telemetry import read
from workflows.embedded.entities import WorldSettings, make_world
from workflows.embedded.pictures import render
from workflows.embedded.questions import MixSettings, draft_questions
from workflows.embedded.search import publish_web
from workflows.grpo import manifest
from workflows.grpo.cast import Plan, weights_root
from workflows.grpo.run import train
from workflows.grpo.settings import GrpoSettings, OnlineEvaluationSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def shard(drafts):
    rows = [
        {
            "data_id": d.id,
            "prompt": [{"role": "user", "content": "<image>" + d.text}],
            "images": [{"bytes": render(d.scene)}],
            "reward_model": {"ground_truth": d.answer, "candidate_answers": json.dumps([d.answer])},
            "data_source": "embedded",
            "category": d.category,
            "kind": d.kind,
            "designed_label": d.label.value,
        }
        for d in drafts
    ]
    rows.append({**rows[0], "data_id": "broken", "images": [{"bytes": b"no picture"}]})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    root = tmp_path_factory.mktemp("grpo")
    world = make_world(WorldSettings())
    publish_web(world, Folder(root / "web"))
    Folder(root / "questions").write_bytes("00.parquet", shard(draft_questions(world, MixSettings(), "train", 24, 0)))
    texts = [preset.opening + preset.after_image + preset.after_text for preset in PRESETS.values()]
    model = save_tiny(texts, root / "model", tags=TAGS, seed=1)
    embedded = "workflows.embedded.search:Embedded"
    web = {"folder": str(root / "web")}
    return Plan(
        name=f"test-{root.name}",
        seed=0,
        folder=Folder(root / "run"),
        model=str(model),
        questions=Folder(root / "questions"),
        images=BlobImages(BlobStore(root / "images")),
        preset="compact",
        limits=Limits(max_total_tokens=512, max_turn_tokens=16, episode_timeout_s=60.0),
        engine=EngineSettings(
            max_model_len=512, max_num_seqs=32, max_num_batched_tokens=1024, kv_cache_bytes=64 << 20, dtype="float32"
        ),
        search=SearchSettings(
            text=[ProviderSettings(embedded + "TextSearch", web)],
            image=[ProviderSettings(embedded + "ImageSearch", web)],
            grounder=ProviderSettings(embedded + "Grounder"),
        ),
        reward=RewardSettings(),
        learner=LearnerSettings(
            max_length=512, micro_batch_tokens=4096, threads=1, backend=BackendSettings(precision="fp32", zero_stage=1)
        ),
        grpo=GrpoSettings(
            steps=3, groups_per_step=2, group_size=4, max_staleness=1, max_tokens=12, filter_zero_variance=False,
            checkpoint_every=1, start_check_questions=1, trajectories_per_step=3,
            evaluation=OnlineEvaluationSettings(every=2, questions=4), export="best",
        ),
        cluster=RuntimeSettings(address="local", num_cpus=2, oversubscribe=True),
        resolved={},
    )  # fmt: skip


def check_evaluations(plan, evaluations, facts):
    """Every version was evaluated alone; the model knows nothing, so the first weights, the start model's, are best."""
    assert [m["eval/version"] for m in evaluations] == [0, 2, 3]
    assert [(m["eval/episodes"], m["eval/failed"], m["eval/wrong_version"]) for m in evaluations] == [(4, 0, 0)] * 3
    assert (facts["questions_held_out"], facts["best"]["step"], facts["best"]["value"]) == (4, 0, 0.0)
    start = load_policy(plan.model, "float32").state_dict()
    for folder in ("best/step-000000", "export"):
        check_model_folder(plan.folder.local_path / folder)
        kept = load_policy(plan.folder.local_path / folder, "float32").state_dict()
        assert kept.keys() == start.keys()
        assert all(torch.equal(kept[name], tensor) for name, tensor in start.items())


def test_a_run_ends_with_a_model_metrics_and_episodes(plan):
    assert train(plan).complete
    check_model_folder(plan.folder.local_path / "export")
    lines = read(plan.folder)
    steps = [m for m in lines if "eval/version" not in m]
    assert [m["step"] for m in steps] == [1, 2, 3]
    assert all(m["staleness/max"] <= 1 for m in steps)
    assert all(m["tokens/trained"] > 0 for m in steps)
    assert steps[-1]["groups_total/trained"] == 6
    facts = manifest.read(plan.folder)
    assert (facts["complete"], facts["questions"], facts["questions_dropped"]) == (True, 20, 1)
    check_evaluations(plan, [m for m in lines if "eval/version" in m], facts)
    rows = pq.read_table(plan.folder.local_path / "trajectories/step-000003.parquet").to_pylist()
    assert len(rows) == 3

    assert train(plan).reason == "it was complete already"
    with pytest.raises(UserError, match="group_size was 4 and is 8"):
        train(replace(plan, grpo=replace(plan.grpo, steps=4, group_size=8)))


def test_runs_of_one_name_pass_their_weights_apart_and_the_parts_of_one_run_in_one_place(plan):
    assert weights_root(plan) == weights_root(replace(plan, seed=1))
    assert weights_root(plan) != weights_root(replace(plan, folder=plan.folder / "other"))


def test_parts_that_do_not_fit_are_said_before_anything_starts(plan):
    with pytest.raises(UserError, match="max_model_len is 512"):
        train(replace(plan, limits=Limits(max_total_tokens=1024)))
    with pytest.raises(UserError, match="which is not there"):
        train(replace(plan, model=str(plan.folder.local_path / "nowhere")))
    with pytest.raises(UserError, match="no questions"):
        train(replace(plan, questions=Folder(plan.folder.local_path / "nowhere"), folder=plan.folder / "other"))
