"""Where samplers may be placed, and how many GPUs share an engine, is configuration: wrong ones are said at once."""

import pytest

from actors.sampler.actor import start_sampler
from cluster.errors import UserError
from workflows.grpo.plan import plan_of
from workflows.settings import load


def plan(*overrides):
    return plan_of(load("gpu_nodes", ["run.name=placement", *overrides]))


def test_the_gpus_of_a_sampler_are_those_that_share_its_engine():
    plan("grpo.sampler_gpus=2", "engine.tensor_parallel_size=2").check()
    plan("grpo.sampler_gpus=0.5").check()  # two samplers on one GPU
    with pytest.raises(UserError, match=r"tensor_parallel_size is 1 and grpo\.sampler_gpus is 2"):
        plan("grpo.sampler_gpus=2").check()
    with pytest.raises(UserError, match=r"tensor_parallel_size is 4 and grpo\.sampler_gpus is 1"):
        plan("engine.tensor_parallel_size=4").check()


def test_a_run_asks_the_cluster_for_the_samplers_that_it_begins_with():
    assert plan("grpo.max_samplers=64").resources == plan().resources


def test_fewer_samplers_at_most_than_at_first_are_refused():
    with pytest.raises(UserError, match="max_samplers must be at least samplers=16"):
        plan("grpo.max_samplers=4")


def test_labels_of_nodes_are_given_to_ray_as_they_are(monkeypatch):
    given = {}

    class Options:
        def options(self, **options):
            given.update(options)
            return self

        def remote(self, *arguments):
            return None

    monkeypatch.setattr("ray.remote", lambda _: Options())
    start_sampler("model", num_gpus=2, labels=plan('grpo.sampler_labels={"pool": "sampling"}').grpo.sampler_labels)
    assert given["label_selector"] == {"pool": "sampling"}
    assert given["num_gpus"] == 2
    given.clear()
    start_sampler("model", labels={})
    assert "label_selector" not in given


def test_weights_from_gpu_to_gpu_need_gpus_and_both_ends():
    both = ("learner.publish.transport=nccl", "engine.nccl_updates=true", "grpo.evaluation.best=false")
    plan(*both).check()
    plan(*both[:2], "grpo.evaluation.every=0").check()
    with pytest.raises(UserError, match=r"leaves no copy of a version .* set grpo\.evaluation\.best=false"):
        plan(*both[:2], "grpo.evaluation.every=5").check()
    with pytest.raises(UserError, match="go together"):
        plan(both[0]).check()
    with pytest.raises(UserError, match="go together"):
        plan(both[1]).check()
    with pytest.raises(UserError, match=r"needs grpo\.learner_gpus and grpo\.sampler_gpus"):
        plan(*both, "grpo.learner_gpus=0").check()
