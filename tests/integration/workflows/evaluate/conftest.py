"""A run's folder as its stages would leave it: an embedded web, test questions, and two models that know nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from actors.agent.protocol import TAGS
from actors.model.tiny import save_tiny
from cluster.storage import Folder
from workflows import settings
from workflows.embedded.entities import WorldSettings
from workflows.embedded.pictures import render
from workflows.embedded.questions import Draft, MixSettings, draft_questions
from workflows.embedded.web import ensure_web
from workflows.run_folder import RunFolder
from workflows.settings import Settings

WORLD = WorldSettings(head=4, tail_train=8, tail_test=8)
LIMITS = {"max_total_tokens": 768, "max_turn_tokens": 16, "episode_timeout_s": 60.0}
ENGINE = {"max_model_len": 768, "max_num_seqs": 16, "max_num_batched_tokens": 1024, "dtype": "float32"}


def row(draft: Draft, picture: bytes | None = None) -> dict:
    return {
        "data_id": draft.id,
        "prompt": [{"role": "user", "content": f"<image>{draft.text}"}],
        "images": [{"bytes": picture or render(draft.scene)}],
        "reward_model": {"ground_truth": draft.answer, "candidate_answers": json.dumps([draft.answer])},
        "data_source": "embedded",
        "category": draft.category,
        "kind": draft.kind,
        "designed_label": draft.label.value,
    }


def outside(row: dict, folder: RunFolder) -> dict:
    """The same question with its picture in the run's blobs, as `dataset.embed_images=false` leaves it."""
    ref = folder.images().put(row["images"][0]["bytes"])
    refs = [{"sha256": ref.sha256, "width": ref.width, "height": ref.height}]
    return {**row, "images": [{"bytes": None}], "image_refs": refs}


def parquet(rows: Sequence[dict]) -> bytes:
    sink = io.BytesIO()
    names = sorted({name for row in rows for name in row})
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), sink)
    return sink.getvalue()


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    world = ensure_web(Folder(root / "world"), WORLD)
    drafts = list(draft_questions(world, MixSettings(), "test", 5, 0))
    broken = {**row(drafts[0], b"no picture"), "data_id": "broken"}
    rows = [row(drafts[0]), *(outside(row(draft), RunFolder.at(str(root))) for draft in drafts[1:])]
    Folder(root / "dataset/questions/test").write_bytes("00.parquet", parquet([*rows, broken]))
    texts = [draft.text for draft in draft_questions(world, MixSettings(), "train", 50, 0)]
    save_tiny(texts, root / "sft/export", tags=TAGS, seed=1)
    save_tiny(texts, root / "grpo/export", tags=TAGS, seed=2)
    return root


@pytest.fixture(scope="session")
def config(run_root: Path) -> Path:
    """A configuration file for that run."""
    content = {
        "extends": "embedded",
        "run": {"name": "test", "storage": str(run_root)},
        "world": {"head": WORLD.head, "tail_train": WORLD.tail_train, "tail_test": WORLD.tail_test},
        "cluster": {"address": "local", "num_cpus": 2, "oversubscribe": True, "object_store_mib": 128},
        "agent": {"preset": "compact", "limits": LIMITS},
        "engine": {**ENGINE, "kv_cache_bytes": 64 << 20},
        "evaluate": {"arms": ["rag", "sft", "rl"], "max_tokens": 16},
    }
    path = run_root / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def chosen(config: Path) -> Settings:
    return settings.load(config)
