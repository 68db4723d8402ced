"""From settings to the plan of a run: what its processes are told means the same in all of them."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from workflows.grpo.plan import plan_of
from workflows.settings import load


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("models/some", "{here}/models/some"),
        ("models/some#max_pixels=9216", "{here}/models/some#max_pixels=9216"),
        ("/models/some", "/models/some"),
        ("s3://bucket/some", "s3://bucket/some"),
        ("s3://bucket/some?scheme=http#max_pixels=9216", "s3://bucket/some?scheme=http#max_pixels=9216"),
    ],
)
def test_a_model_is_opened_at_the_same_place_whatever_directory_a_process_has(given, opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load("gpu_nodes", [f"grpo.start_from={given}"])
    assert plan_of(settings).start_model == opened.format(here=tmp_path)


def test_an_address_of_a_model_that_is_none_is_said(tmp_path):
    with pytest.raises(UserError, match="is no address of a model"):
        plan_of(load("gpu_nodes", ["grpo.start_from=models/some#max_pixels=many"]))


def test_a_providers_model_is_named_by_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grounder = load("deepmmsearch_r1_7b").search.grounder
    assert grounder is not None
    assert grounder.kwargs == {"model": str(Path.cwd() / "models/grounding-dino-base")}
