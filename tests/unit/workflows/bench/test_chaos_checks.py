"""What a run's folder must show after its processes were killed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Folder
from workflows.bench.chaos_checks import problems
from workflows.grpo.settings import GrpoSettings

SETTINGS = GrpoSettings(groups_per_step=2, group_size=2, max_staleness=1)


def line(step, **more):
    return {
        "step": float(step), "version": float(step), "time": float(step), "time/step_s": 1.0, "staleness/max": 1.0,
        "groups_total/admitted": 2.0 * step, "groups_total/trained": 2.0 * step, **more,
    }  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """Writes a run of three steps; `changes`: by step what differs, or None for a step that is missing; `again`: each
    step asks the same questions."""

    def write(changes=None, questions=("a", "b"), failure="none", indices=(0, 1), again=False):
        folder = Folder(tmp_path)
        steps = [line(n, **(changes or {}).get(n, {})) for n in (1, 2, 3) if (changes or {}).get(n, {}) is not None]
        folder.write_text("metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
        for n in (1, 2, 3):
            rows = [
                {
                    "question_id": question if again else f"{question}{n}",
                    "sample_index": index,
                    "failure": failure,
                    "reward": 1.0,
                }
                for question in questions
                for index in indices
            ]
            (tmp_path / "trajectories").mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"trajectories/step-{n:06d}.parquet")
        return folder

    return write


def test_a_run_that_is_whole_has_no_problems(made):
    assert problems(made(), SETTINGS) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({2: None}, "not 1 to 2"),
        ({2: {"version": 7.0}}, "another version"),
        ({3: {"groups_total/trained": 5.0}}, "step 3"),
        ({3: {"groups_total/trained": 5.0, "groups_total/admitted": 5.0}}, "other than 2 groups"),
        ({1: {"staleness/max": 2.0}}, "staleness 2"),
    ],
)
def test_each_thing_that_is_not_as_it_must_be_is_said(made, changes, said):
    (problem,) = problems(made(changes), SETTINGS)
    assert said in problem


def test_an_episode_that_failed_and_was_trained_on_is_found(made):
    assert all("was trained on" in problem for problem in problems(made(failure="infra"), SETTINGS))
    assert len(problems(made(failure="infra"), SETTINGS)) == 3


@pytest.mark.parametrize("indices", [(0, 0), (0, 1, 2)])
def test_an_episode_that_stands_twice_or_has_no_place_in_its_group_is_found(made, indices):
    assert all("twice, or more" in problem for problem in problems(made(indices=indices), SETTINGS))
    assert len(problems(made(indices=indices), SETTINGS)) == 3


def test_a_question_that_comes_back_within_an_epoch_is_found(made):
    (problem,) = problems(made(again=True), SETTINGS)
    assert "2 questions were trained more often than 1 epochs allow" in problem


@pytest.mark.parametrize(("questions", "n"), [(("a",), 1), (("a", "b", "c"), 3)])
def test_a_step_of_fewer_or_more_groups_than_a_step_has_is_found(made, questions, n):
    found = problems(made(questions=questions), SETTINGS)
    assert len(found) == 3
    assert all(f"has episodes of {n} questions, a step is of 2" in problem for problem in found)


def test_kept_episodes_that_are_gone_are_missed(made, tmp_path):
    folder = made()
    (tmp_path / "trajectories/step-000002.parquet").unlink()
    (problem,) = problems(folder, SETTINGS)
    assert "step-000002" in problem


def test_a_run_without_a_step_is_no_run(tmp_path):
    assert problems(Folder(tmp_path), SETTINGS) == ["no step was made"]
