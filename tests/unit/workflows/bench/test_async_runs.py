"""An arm is the run's own GRPO plan with another schedule, and a run that is known is not made again."""

from __future__ import annotations

from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.agent.trajectory import Question
from cluster.storage import Folder
from tests.unit.workflows.bench.test_async_numbers import a_run
from tests.unit.workflows.bench.test_bench_commands import call
from workflows.bench import async_runs, asynchrony
from workflows.bench.async_evaluation import Evaluation
from workflows.bench.async_form import ARMS, TRACES, AsyncForm
from workflows.bench.async_rounds import IN_ROUNDS
from workflows.bench.async_runs import Run, known, run_of
from workflows.evaluate.run import plan_of as evaluation_plan_of
from workflows.grpo.plan import plan_of
from workflows.settings import load

ROUNDS, SYNC, _, ASYNC_2, _ = ARMS
NEAR_ZERO, LOG_NORMAL, QUOTA = TRACES
ASKED = evaluation_plan_of(load("embedded"))


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(async_runs, "identity_of", lambda plan: {"start model": plan.model, "seed": plan.seed})
    return plan_of(load("embedded", [f"run.storage={tmp_path}", "grpo.window=20", "grpo.groups_per_step=12"]))


@pytest.fixture
def a_plan(base, tmp_path):
    def made(trace=LOG_NORMAL, arm=SYNC, seed=3, evaluation=None, **form) -> Run:
        return run_of(base, Folder(tmp_path / "bench"), trace, arm, seed, AsyncForm(**form), evaluation)

    return made


def test_arms_differ_in_staleness_alone(a_plan):
    first, second = (a_plan(arm=arm).plan for arm in (SYNC, ASYNC_2))
    assert (first.grpo.max_staleness, second.grpo.max_staleness) == (0, 2)
    other = replace(second.grpo, max_staleness=0)
    assert other == first.grpo
    assert second.resolved["grpo"]["max_staleness"] == 2  # what the manifest says
    same = {name: getattr(first, name) for name in ("grpo", "folder", "search", "resolved")}
    assert replace(second, **same) == first


def test_an_arm_trains_on_batches_of_the_runs_own_size_and_from_its_own_model(a_plan, base):
    plan = a_plan(arm=ASYNC_2, steps=7).plan
    assert (plan.grpo.groups_per_step, plan.grpo.group_size, plan.grpo.steps) == (12, 8, 7)
    assert (plan.model, plan.learner, plan.engine) == (base.model, base.learner, base.engine)
    assert plan.seed == 3
    a_plan(arm=SYNC).plan.grpo.check()  # the run's window does not fit every staleness


def test_all_groups_are_trained_on_unless_they_are_to_be_refilled(a_plan):
    assert a_plan().plan.grpo.filter_zero_variance is False
    assert a_plan(refill=True).plan.grpo.filter_zero_variance is True


def test_nothing_is_evaluated_or_saved_on_the_way_and_no_question_is_held_out_for_it(a_plan, base):
    assert base.grpo.evaluation.every
    grpo = a_plan(steps=7, evaluation=Evaluation(ASKED, ())).plan.grpo
    assert grpo.evaluation.every == 0
    assert grpo.checkpoint_every > 7


def test_no_two_runs_share_a_folder_or_a_quota(a_plan):
    runs = [a_plan(trace, arm, seed) for trace in TRACES for arm in ARMS for seed in (0, 1)]
    assert len({run.plan.folder.address for run in runs}) == len(runs)
    names = {run.plan.search.text[0].name for run in runs}
    assert len(names) == len(runs)


def test_the_trace_is_the_same_in_every_arm(a_plan):
    first, second = (a_plan(QUOTA, arm).plan.search for arm in (ROUNDS, ASYNC_2))
    assert first.text[0].kwargs == second.text[0].kwargs
    assert first.text[0].quota == second.text[0].quota


def test_no_search_waits_for_a_place_in_the_worker(a_plan, base):
    for arm in (SYNC, ASYNC_2):
        plan = a_plan(arm=arm).plan
        assert base.search.max_concurrency < plan.grpo.most_per_sampler <= plan.search.max_concurrency


def test_a_run_that_was_made_is_known_until_something_that_decides_it_changes(a_plan):
    run = a_plan()
    assert known(run) is None
    found = a_run("log-normal", "sync", 2.0)
    run.plan.folder.write_json(async_runs.NUMBERS, {"mark": run.mark, "numbers": asdict(found)})
    assert known(run) == found
    assert known(a_plan(steps=11)) is None
    assert known(a_plan(evaluation=Evaluation(ASKED, ()))) is None
    assert known(replace(run, plan=replace(run.plan, model="another"))) is None


def test_episodes_are_played_in_rounds_in_that_arm_alone(a_plan):
    assert a_plan(arm=ROUNDS).plan.policy == IN_ROUNDS
    assert a_plan(arm=SYNC).plan.policy is None


def test_runs_whose_last_weights_are_asked_other_questions_are_not_the_same(a_plan):
    asked = [Evaluation(ASKED, [Question(id, "who?") for id in ids]) for ids in (("a", "b"), ("a",), ("a", "b"))]
    first, other, same = (a_plan(evaluation=one).mark for one in asked)
    assert first == same != other


def test_the_runs_own_test_questions_are_asked_greedily(tmp_path):
    folder = tmp_path / "dataset/questions/test"
    folder.mkdir(parents=True)
    rows = [
        {"data_id": f"q{i}", "prompt": [{"role": "user", "content": "who?"}], "reward_model": {"ground_truth": "she"}}
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    settings = load("embedded", [f"run.storage={tmp_path}", "evaluate.temperature=1", "evaluate.samples=3"])
    ids = [[question.id for question in Evaluation.of(settings, n).questions] for n in (3, 500)]
    assert len(ids[0]) == 3
    assert set(ids[0]) < set(ids[1]) == {f"q{i}" for i in range(5)}
    assert Evaluation.of(settings, 3).plan.sampling.temperature == 0.0


def test_without_test_questions_the_full_form_says_so_before_anything_is_trained(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(asynchrony, "_check_start", lambda plan: None)
    assert call(monkeypatch, f"bench async --full run.name=new run.storage={tmp_path}") == 2
    assert "there are no questions" in capsys.readouterr().err


def test_seeds_come_one_after_the_other_with_all_their_arms(base, tmp_path):
    form = AsyncForm(seeds=2, arms=("sync", "async-2"), traces=("quota",))
    runs = asynchrony.runs_of(base, Folder(tmp_path), form)
    assert [(run.seed, run.arm.name) for run in runs] == [(0, "sync"), (0, "async-2"), (1, "sync"), (1, "async-2")]


def test_without_a_finished_run_the_command_that_makes_one_is_named(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, f"bench async run.name=new run.storage={tmp_path}") == 2
    assert "`mmsearch demo run.name=new` first" in capsys.readouterr().err


def test_an_unknown_arm_is_refused_before_anything_is_looked_for(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, f"bench async --arm fast run.storage={tmp_path}") == 2
    assert "--arm is 'fast' and must be one of rounds" in capsys.readouterr().err
