"""Which stages a demo has, over seeds and with ablations too."""

import pytest

from workflows import demo, settings
from workflows.play_stages import tasks_of
from workflows.stage import fingerprints
from workflows.variants import ABLATIONS, ablation_stages, ablation_words, seed_words


@pytest.fixture
def words(tmp_path):
    return [f"run.storage={tmp_path}/runs/mine"]


@pytest.fixture
def chosen(words):
    return settings.load(None, words)


def test_the_stages_of_the_demo_name_settings_that_exist_and_stages_before_them(chosen):
    marks = fingerprints(demo.STAGES, chosen)
    assert list(marks) == ["pretrain", "dataset", "sft", "grpo", "evaluate"]
    assert {stage.name for stage in demo.STAGES} == set(vars(chosen.demo.expected))


def test_every_seed_is_another_training_in_another_world_and_a_folder_of_its_own(chosen, words):
    runs = [settings.load(None, [*words, *seed_words(chosen, i)]) for i in range(3)]
    assert [run.run.seed for run in runs] == [0, 1, 2]
    assert [run.world.seed for run in runs] == [chosen.world.seed + i for i in range(3)]
    assert len({str(run.run.folder) for run in runs}) == 3
    assert str(runs[0].run.folder) == str(chosen.run.folder)  # what one demo made is used by three
    assert all(str(run.run.folder) in str(run.search.text[0].kwargs["folder"]) for run in runs)


def test_a_demo_over_seeds_reuses_what_one_alone_has_trained(chosen, words):
    alone, first = (
        fingerprints(demo.STAGES, s) for s in (chosen, settings.load(None, [*words, *seed_words(chosen, 0)]))
    )
    assert [name for name in alone if alone[name] != first[name]] == ["evaluate"]


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.name)
def test_an_ablation_trains_and_asks_in_its_own_folder_from_the_same_sft_model(ablation, chosen, words):
    marks = fingerprints(demo.STAGES, chosen)
    altered = settings.load(None, [*words, *ablation_words(ablation)])
    trained, asked = tasks_of(ablation_stages(ablation, demo.STAGES), altered, marks)
    assert trained.fingerprint != marks["grpo"]
    assert trained.stage.needs == ("dataset", "sft")
    assert asked.stage.needs[-1] == trained.stage.name
    assert altered.grpo.folder in trained.stage.outputs[0]
    assert altered.evaluate.folder in asked.stage.outputs[0]
    again = tasks_of(ablation_stages(ablation, demo.STAGES), altered, {**marks, "sft": "another"})
    assert again[0].fingerprint != trained.fingerprint
